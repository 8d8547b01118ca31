"""Errors as clients see them: OpenAI's shape, a status, and nothing from inside.

Sources: https://platform.openai.com/docs/guides/error-codes, https://docs.anthropic.com/en/api/errors.

GatewayError
    Unauthorized        401  no key, or not the right one
    InsufficientScope   403  the key may not use the route
    TooManyAttempts     429  too many wrong keys from one address
    NotFound            404  no such route
    MethodNotAllowed    405  the route is there, the method is not
    ModelNotFound       404  no model of that id
    TaskNotSupported    404  the model cannot do what the route asks
    BadRequest          400  the body is not what the route takes
        ContextLengthExceeded 400  prompt and answer do not fit into the model's context
        InvalidJSON           400  not JSON, or JSON of a kind that is not safe to read
        UnknownParameter      400  a field that the route does not have
        UnsupportedParameter  400  a field that callers, or this caller, may not set
        InvalidSchema         400  a JSON schema or grammar that may be too costly to compile
        InvalidImageURL       400  media that is not in the request itself
        InvalidImage          400  an image that cannot be read, or is too large
        InvalidContent        400  text that would stand for media
    Unprocessable       422  the body is well formed, but what it refers to cannot be used
    TooLarge            413  the body is over the limit
    UnsupportedMedia    415  a content type or encoding that the route does not take
    RateLimited         429  one of the key's limits is reached
    HeadersTooLarge     431  too many headers, or too large
    UpstreamFailed      500  the model's replica failed while it answered
    ModelLoading        503  no replica of the model can answer yet
    Overloaded          503  the model has no place for the request, or none in time
    DeadlineExceeded    504  the answer took longer than a deadline allows
    UsageUnavailable    503  the usage ledger's database does not answer
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import msgspec
from starlette.types import Send

Headers = list[tuple[bytes, bytes]]
Style = Literal["openai", "anthropic"]
JSON = (b"content-type", b"application/json")

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class GatewayError(Exception):
    """A request that ends here. `str()` of it is the message that the client reads."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.param = param
        self.headers: Headers = [(name.encode(), value.encode()) for name, value in headers]


class Unauthorized(GatewayError):
    status, type, code = 401, "authentication_error", "invalid_api_key"

    def __init__(self) -> None:
        super().__init__(
            "Send the service's API key as `Authorization: Bearer <key>`.",
            headers=[("www-authenticate", "Bearer")],
        )


class InsufficientScope(GatewayError):
    status, type, code = 403, "permission_error", "insufficient_scope"

    def __init__(self, path: str) -> None:
        super().__init__(f"This key may not use {path}.")


class TooManyAttempts(GatewayError):
    status, type, code = 429, "authentication_error", "invalid_api_key"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(
            f"Too many requests without a right key. Try again with one, or in {retry_after_s} seconds.",
            headers=[("retry-after", str(retry_after_s)), ("x-should-retry", "false")],
        )


class NotFound(GatewayError):
    status, type, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(GatewayError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class ModelNotFound(GatewayError):
    status, type, code = 404, "invalid_request_error", "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model `{model[:128]}` does not exist.", param="model")


class TaskNotSupported(GatewayError):
    status, type, code = 404, "invalid_request_error", "task_not_supported"


class BadRequest(GatewayError):
    status, type, code = 400, "invalid_request_error", "invalid_value"


class InvalidJSON(BadRequest):
    code = "invalid_json"


class UnknownParameter(BadRequest):
    code = "unknown_parameter"


class UnsupportedParameter(BadRequest):
    code = "unsupported_parameter"


class InvalidSchema(BadRequest):
    code = "invalid_schema"


class InvalidImageURL(BadRequest):
    code = "invalid_image_url"


class InvalidImage(BadRequest):
    code = "invalid_image"


class InvalidContent(BadRequest):
    code = "invalid_content"


class ContextLengthExceeded(BadRequest):
    code = "context_length_exceeded"


class Unprocessable(GatewayError):
    status, type, code = 422, "invalid_request_error", "invalid_value"


class TooLarge(GatewayError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class UnsupportedMedia(GatewayError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class HeadersTooLarge(GatewayError):
    status, type, code = 431, "invalid_request_error", "headers_too_large"


class RateLimited(GatewayError):
    """Its headers say what the limits are and when to try again; see limits/headers.py, which makes it."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class ModelLoading(GatewayError):
    status, type, code = 503, "server_error", "model_loading"

    def __init__(self, model: str, retry_after_s: int) -> None:
        super().__init__(
            f"The model `{model}` is loading. Try again in {retry_after_s} seconds.",
            headers=[("retry-after", str(retry_after_s))],
        )


class UpstreamFailed(GatewayError):
    status, type, code = 500, "server_error", "upstream_failed"

    def __init__(self) -> None:
        super().__init__("The model failed while it answered. The answer is not complete.")


class Overloaded(GatewayError):
    status, type, code = 503, "service_unavailable_error", "server_is_overloaded"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(
            f"The model has no free place for this request. Try again in {retry_after_s} seconds.",
            headers=[("retry-after", str(retry_after_s))],
        )


class UsageUnavailable(GatewayError):
    status, type, code = 503, "server_error", "usage_unavailable"

    def __init__(self) -> None:
        super().__init__("The usage ledger cannot be read now. Try again later.", headers=[("retry-after", "10")])


class DeadlineExceeded(GatewayError):
    """No 408: the SDKs repeat that, and with it the whole generation."""

    status, type, code = 504, "server_error", "timeout"

    def __init__(self, what: str, limit_s: float) -> None:
        super().__init__(f"{what} took longer than {limit_s:g} seconds.", headers=[("x-should-retry", "false")])


def style_of(path: str) -> Style:
    """Whose error shape the clients of a route read."""
    return "anthropic" if path == "/v1/messages" or path.startswith("/v1/messages/") else "openai"


def error_body(error: GatewayError, style: Style) -> bytes:
    """An error as JSON."""
    if style == "anthropic":
        kind = ANTHROPIC_TYPES.get(error.status, "api_error")
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": str(error)}})
    body = {"message": str(error), "type": error.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": body})


def error_frame(error: GatewayError, style: Style) -> bytes:
    """An error as the last event of a stream. Source: openai/_streaming.py, which reads plain `data:` alone."""
    name = b"event: error\n" if style == "anthropic" else b""
    return name + b"data: " + error_body(error, style) + b"\n\n"


async def send_error(error: GatewayError, send: Send, headers: Headers, style: Style = "openai") -> None:
    """Answer a request with an error."""
    await send_bytes(error.status, error_body(error, style), send, [JSON, *error.headers, *headers])


async def send_bytes(status: int, body: bytes, send: Send, headers: Headers) -> None:
    """Answer a request with one whole body."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
