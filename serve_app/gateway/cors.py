"""CORS: which web pages may call the service from a browser. Off unless CORS_ORIGINS names them.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol. Keys travel in headers, never in cookies, so no answer
allows credentials.
"""

import os
import re
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.gateway.errors import Headers
from serve_app.gateway.headers import COMMON
from serve_app.settings import ConfigError

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s/?#@*,'\"\\A-Z]+)")
_DEFAULT_PORT = {"http": ":80", "https": ":443"}

ALLOWED_HEADERS = (
    "authorization",
    "content-type",
    "x-api-key",
    "x-request-id",
    "x-request-deadline-ms",
    "x-conversation-id",
    "anthropic-version",
    "anthropic-beta",
    "anthropic-dangerous-direct-browser-access",
    "openai-organization",
    "openai-project",
    *(
        f"x-stainless-{name}"
        for name in (
            "arch",
            "custom-poll-interval",
            "helper",
            "helper-method",
            "lang",
            "os",
            "package-version",
            "poll-helper",
            "read-timeout",
            "retry-count",
            "runtime",
            "runtime-version",
            "timeout",
        )
    ),
)
EXPOSED_HEADERS = (
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    *(f"x-ratelimit-{part}-{unit}" for unit in ("requests", "tokens") for part in ("limit", "remaining", "reset")),
    "ratelimit",
    "ratelimit-policy",
)
VARY = (b"vary", b"Origin")
PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", ", ".join(ALLOWED_HEADERS).encode()),
    (b"access-control-max-age", b"600"),
]
EXPOSE = (b"access-control-expose-headers", ", ".join(EXPOSED_HEADERS).encode())


def parse_origins(text: str) -> frozenset[bytes]:
    """The origins of CORS_ORIGINS: comma separated, each as the browser sends it.

    Raises:
        ConfigError: one is no origin, or is `*`.
    """
    return frozenset(_origin(part.strip()) for part in text.split(",") if part.strip())


def early_origins() -> frozenset[bytes]:
    """The origins of $CORS_ORIGINS, for what runs before the application; none where it will refuse them."""
    try:
        return parse_origins(os.environ.get("CORS_ORIGINS", ""))
    except ConfigError:
        return frozenset()


class Cors:
    """The outermost layer of the gateway: answers preflights, and marks every answer to a known origin."""

    def __init__(self, app: ASGIApp, origins: frozenset[bytes]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._origins:
            return await self._app(scope, receive, send)
        names = dict(scope["headers"])
        if scope["method"] == "OPTIONS" and b"origin" in names and b"access-control-request-method" in names:
            return await _answer_preflight(send, _allowed(scope["headers"], self._origins))

        def sending(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                marks = marks_of(scope["headers"], self._origins)
                message = {**message, "headers": [*message.get("headers", ()), *marks]}
            return send(message)

        await self._app(scope, receive, sending)


def marks_of(headers: Headers, origins: frozenset[bytes]) -> Headers:
    """What the answer to a request with these headers says to browsers; nothing where CORS is off."""
    if not origins:
        return []
    known = _allowed(headers, origins)
    return [*known, EXPOSE, VARY] if known else [VARY]


def _allowed(headers: Headers, origins: frozenset[bytes]) -> Headers:
    origin = dict(headers).get(b"origin")
    return [(b"access-control-allow-origin", origin)] if origin in origins else []


async def _answer_preflight(send: Send, known: Headers) -> None:
    headers = [*COMMON, *known, *PREFLIGHT, VARY] if known else [*COMMON, VARY]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _origin(text: str) -> bytes:
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"CORS_ORIGINS: {text!r} is not an exact origin such as https://chat.example.com"
            " (scheme and host in small letters, a port if it is not the usual one, no path, no *)"
        )
    if text.endswith(_DEFAULT_PORT.get(match[1], "\n")):
        raise ConfigError(f"CORS_ORIGINS: {text!r}: browsers leave the usual port out, and so must this")
    return text.encode()
