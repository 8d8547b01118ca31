"""Replies that are sent whole: an error in OpenAI's shape or Anthropic's, or a body of our own.

Sources: https://platform.openai.com/docs/guides/error-codes, https://docs.anthropic.com/en/api/errors.
"""

from typing import Literal

import msgspec
from starlette.types import Send

from serve_app.gateway.errors import GatewayError, Headers

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
