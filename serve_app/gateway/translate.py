"""vLLM's errors, turned into ours.

vLLM answers with `{"error": {"message", "type", "param", "code": <status>}}`, on the Anthropic routes without
`param` and `code`. Source: vllm/entrypoints/serve/exception_handling. Its messages about a request are worth
passing on, less what they say of the inside; what it says of its own failures is not.
"""

import re
from http import HTTPStatus

import msgspec

from serve_app.gateway.errors import (
    BadRequest,
    ContextLengthExceeded,
    GatewayError,
    NotFound,
    Overloaded,
    TaskNotSupported,
    TooLarge,
    Unprocessable,
)

MAX_MESSAGE = 500
MAX_FIELDS = 5
BUSY_RETRY_AFTER_S = 1

_CONTEXT = re.compile(r"maximum (context|model|input) length|max_model_len|context length", re.IGNORECASE)
# A sentence with one of these speaks to whoever runs the service: flags, variables, modules, paths, Python.
_INTERNAL = re.compile(
    r"(^|\s|`)--[a-z]|VLLM_|\b(vllm|torch|transformers|pydantic|jinja2?|fastapi|starlette|asyncio|ray|xgrammar)\b"
    r"|max_model_len|traceback|0x[0-9a-f]{4,}|<path>|(^|[\s'\"`(])/\w[\w.-]*/|\.py\b|\w\(\)|NoneType|has no attribute"
    r"|<class|<[\w.]+ object",
    re.IGNORECASE,
)
_FIELD = re.compile(r"'loc': '([^']*)', 'msg': (?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\")")
# vLLM puts the refused value behind the message, which can be the prompt.
_EXTRAS = re.compile(r" \((parameter|value)=.*\)$", re.DOTALL)
_PARAM = re.compile(r"(?!\d+$)[\w.\[\]-]{1,128}")

_BY_STATUS: dict[int, tuple[type[GatewayError], str]] = {
    404: (NotFound, "What the request names does not exist."),
    413: (TooLarge, "The request body is too large."),
    422: (Unprocessable, "The model cannot take what the request refers to."),
}


class _Info(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: int = HTTPStatus.INTERNAL_SERVER_ERROR


class _Body(msgspec.Struct):
    error: _Info


_body = msgspec.json.Decoder(_Body)


def from_answer(status: int, body: bytes, request_id: str) -> GatewayError:
    """The error for an answer of vLLM that is not a success."""
    return _translate(status, _read(body), request_id)


def from_frame(frame: bytes, request_id: str) -> GatewayError:
    """The error for a stream of vLLM that begins with an error."""
    info = _read(frame.partition(b"data: ")[2])
    return _translate(info.code, info, request_id)


def internal_error(request_id: str) -> GatewayError:
    """What a client learns of a failure inside: an id to ask the operator about."""
    return GatewayError(f"The request failed inside the service ({request_id}).")


def _read(body: bytes) -> _Info:
    try:
        return _body.decode(body.strip()).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Info()


def _translate(status: int, info: _Info, request_id: str) -> GatewayError:
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return Overloaded(BUSY_RETRY_AFTER_S)
    if status == HTTPStatus.NOT_IMPLEMENTED:
        return TaskNotSupported("The model does not support this request.", param="model")
    if not 400 <= status < 500:
        return internal_error(request_id)
    message, param = _message(info.message), _param(info.param)
    if status == HTTPStatus.BAD_REQUEST and _CONTEXT.search(info.message):
        return ContextLengthExceeded(message or "Prompt and answer are longer than the model's context.", param=param)
    error, unexplained = _BY_STATUS.get(status, (BadRequest, "The model cannot take this request."))
    return error(message or unexplained, param=param)


def _message(text: str) -> str:
    """What of a message may be passed on; empty: nothing."""
    if fields := _FIELD.findall(text):
        said = ((_param(loc), _message(single or double)) for loc, single, double in fields[:MAX_FIELDS])
        return "; ".join(f"{name or 'body'}: {what or 'invalid'}" for name, what in said)
    text = " ".join(_EXTRAS.sub("", text).split())
    kept = " ".join(part for part in re.split(r"(?<=[.!?])\s+", text) if not _INTERNAL.search(part))
    return kept if len(kept) <= MAX_MESSAGE else kept[:MAX_MESSAGE] + "…"


def _param(param: str | None) -> str | None:
    name = (param or "").removeprefix("body").removeprefix(".")
    return name if _PARAM.fullmatch(name) else None
