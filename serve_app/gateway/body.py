"""The request body: read whole and bounded, looked into for the model, and handed on unchanged."""

from collections.abc import AsyncGenerator

import msgspec
from starlette.datastructures import Headers as StarletteHeaders
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Message, Receive

from serve_app.gateway.errors import BadRequest, Headers, TooLarge
from serve_app.gateway.routes import ModelRoute


class ClientLeft(Exception):
    """The client closed the connection before its request was whole."""


class _Envelope(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None


_envelope = msgspec.json.Decoder(_Envelope)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        TooLarge: it is over `limit` bytes.
        ClientLeft: it ended early.
    """
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise TooLarge(f"The request body is over {limit} bytes.")
        if not message.get("more_body", False):
            return b"".join(chunks)


async def model_and_body(route: ModelRoute, headers: Headers, body: bytes) -> tuple[str | None, bytes]:
    """The model that a body asks for, and the body with the route's defaults filled in.

    Raises:
        BadRequest: the body is not JSON (or no form, where the route takes one), or lacks what is required.
    """
    if route.multipart:
        return await _model_of_form(headers, body), body
    try:
        envelope = _envelope.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad_json(error) from None
    if route.model_required and envelope.model is None:
        raise BadRequest("`model` is required.", param="model")
    if route.stream_by_default and envelope.stream is None:
        fields = _object.decode(body)
        body = msgspec.json.encode({**fields, "stream": True})
    return envelope.model, body


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what the connection gives."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


async def _model_of_form(headers: Headers, body: bytes) -> str | None:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    content_type = dict(headers).get(b"content-type", b"")
    if not content_type.startswith(b"multipart/form-data"):
        raise BadRequest("Send the file as multipart/form-data.")
    try:
        form = await MultiPartParser(StarletteHeaders(raw=headers), stream()).parse()
    except MultiPartException as error:
        raise BadRequest("The form could not be read.") from error
    model = form.get("model")
    return model if isinstance(model, str) else None


def _bad_json(error: Exception) -> BadRequest:
    if isinstance(error, msgspec.ValidationError):
        for field, kind in (("model", "a string"), ("stream", "a boolean")):
            if f"$.{field}" in str(error):
                return BadRequest(f"`{field}` must be {kind}.", param=field)
        return BadRequest("The request body must be a JSON object.")
    return BadRequest("The request body is not valid JSON.")
