"""Errors as clients see them: a status, a code and nothing from inside. Their shapes are in replies.py.

Source: https://platform.openai.com/docs/guides/error-codes.

GatewayError
    Unauthorized        401  no key, or not the right one
    InsufficientScope   403  the key may not use the route
    TooManyAttempts     429  too many wrong keys from one address
    NotFound            404  what the path names is not there
        NoSuchRoute     404  no such route
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
        RequestTooSlow        400  the head or the body did not come in time
    Unprocessable       422  the body is well formed, but what it refers to cannot be used
        RequestRefused  422  the request is known to kill replicas
    TooLarge            413  the body is over the limit
    UnsupportedMedia    415  a content type or encoding that the route does not take
    RateLimited         429  one of the key's limits is reached
    HeadersTooLarge     431  too many headers, or too large
    UpstreamFailed      500  the model's replica failed while it answered
    ModelLoading        503  no replica of the model can answer yet
    ModelFailed         503  the replicas of the model do not start
    Overloaded          503  the model has no place for the request, or none in time
    GatewayUnavailable  503  no gateway answers: the service is starting, or one has died with the request
    DeadlineExceeded    504  the answer took longer than a deadline allows
    UsageUnavailable    503  the usage ledger's database does not answer
"""

from collections.abc import Iterable
from typing import ClassVar

Headers = list[tuple[bytes, bytes]]
# Keeps OpenAI's and Anthropic's clients from sending a request again by themselves.
NO_RETRY = (("x-should-retry", "false"),)


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
            headers=[
                ("retry-after", str(retry_after_s)),
                ("retry-after-ms", str(1000 * retry_after_s)),
                ("x-should-retry", "false"),
            ],
        )


class NotFound(GatewayError):
    status, type, code = 404, "invalid_request_error", "not_found"


class NoSuchRoute(NotFound):
    def __init__(self) -> None:
        super().__init__("There is no such route.")


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


class RequestTooSlow(BadRequest):
    code = "request_timeout"

    def __init__(self, what: str, limit_s: float) -> None:
        super().__init__(f"{what} did not come within {limit_s:g} seconds.", headers=NO_RETRY)


class Unprocessable(GatewayError):
    status, type, code = 422, "invalid_request_error", "invalid_value"


class RequestRefused(Unprocessable):
    code = "request_refused"

    def __init__(self) -> None:
        super().__init__("The model has failed twice over this request, which is refused for now.", headers=NO_RETRY)


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

    def __init__(self, model: str) -> None:
        super().__init__(f"The model `{model}` is loading. Try again in 10 seconds.", headers=[("retry-after", "10")])


class ModelFailed(GatewayError):
    """Serve has given up starting replicas: it does so again with the next deployment only."""

    status, type, code = 503, "server_error", "model_failed"

    def __init__(self, model: str) -> None:
        message = f"The model `{model}` does not start. Whoever runs the service has to repair it."
        super().__init__(message, headers=NO_RETRY)


class UpstreamFailed(GatewayError):
    status, type, code = 500, "server_error", "upstream_failed"

    def __init__(self, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__("The model failed while it answered. The answer is not complete.", headers=headers)


class Overloaded(GatewayError):
    status, type, code = 503, "service_unavailable_error", "server_is_overloaded"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(
            f"The model has no free place for this request. Try again in {retry_after_s} seconds.",
            headers=[("retry-after", str(retry_after_s))],
        )


class GatewayUnavailable(GatewayError):
    status, type, code = 503, "service_unavailable_error", "gateway_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The service does not answer now; it may be starting or restarting. Try again in a second.",
            headers=[("retry-after", "1")],
        )


class UsageUnavailable(GatewayError):
    status, type, code = 503, "server_error", "usage_unavailable"

    def __init__(self) -> None:
        super().__init__("The usage ledger cannot be read now. Try again later.", headers=[("retry-after", "10")])


class DeadlineExceeded(GatewayError):
    """No 408: the SDKs repeat that, and with it the whole generation."""

    status, type, code = 504, "server_error", "timeout"

    def __init__(self, what: str, limit_s: float | None = None) -> None:
        """`limit_s`: None: it is not known here."""
        limit = "the service allows" if limit_s is None else f"{limit_s:g} seconds"
        super().__init__(f"{what} took longer than {limit}.", headers=NO_RETRY)
