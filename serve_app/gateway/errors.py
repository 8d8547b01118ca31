"""Errors as clients see them: OpenAI's shape, a status, and nothing from inside.

Source: https://platform.openai.com/docs/guides/error-codes.

GatewayError
    Unauthorized        401  no key, or not the right one
    NotFound            404  no such route
    MethodNotAllowed    405  the route is there, the method is not
    ModelNotFound       404  no model of that id
    TaskNotSupported    404  the model cannot do what the route asks
    BadRequest          400  the body is not what the route takes
    TooLarge            413  the body is over the limit
    RateLimited         429  one of the key's limits is reached
    ModelLoading        503  no replica of the model can answer yet
"""

from collections.abc import Iterable
from typing import ClassVar

import msgspec
from starlette.types import Send

Headers = list[tuple[bytes, bytes]]
JSON = (b"content-type", b"application/json")


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


class TooLarge(GatewayError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


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


async def send_error(error: GatewayError, send: Send, headers: Headers) -> None:
    """Answer a request with an error."""
    body = {"message": str(error), "type": error.type, "param": error.param, "code": error.code}
    await send_bytes(error.status, msgspec.json.encode({"error": body}), send, [JSON, *error.headers, *headers])


async def send_bytes(status: int, body: bytes, send: Send, headers: Headers) -> None:
    """Answer a request with one whole body."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
