"""The headers that every answer of the service carries, whoever wrote the answer."""

from collections.abc import Awaitable, Callable, Iterable

from starlette.types import Message, Send

from serve_app.gateway.errors import Headers

COMMON: Headers = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
# Keeps nginx and what is built on it from holding a stream back.
UNBUFFERED = (b"x-accel-buffering", b"no")
# Serve and its server add id, name and date themselves; anything else that names the software is dropped.
DROPPED = frozenset({b"x-request-id", b"server", b"date", b"x-powered-by", b"connection"})


def with_headers(send: Send, limits: Callable[[], Iterable[tuple[bytes, bytes]]] = tuple) -> Send:
    """A `send` that gives every answer the service's headers, in place of those of the same name.

    Args:
        send: the client's.
        limits: the rate limit headers, asked for when the answer begins.
    """

    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            ours = [*COMMON, *limits()]
            message = {**message, "headers": _combine(message.get("headers", ()), ours)}
        return send(message)

    return sending


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether an answer with these headers is a stream of server-sent events."""
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def _combine(theirs: Iterable[tuple[bytes, bytes]], ours: Headers) -> Headers:
    theirs = [(name.lower(), value) for name, value in theirs]
    if is_event_stream(theirs):
        ours = [*ours, UNBUFFERED]
    replaced = DROPPED.union(name for name, _ in ours)
    return [pair for pair in theirs if pair[0] not in replaced] + ours
