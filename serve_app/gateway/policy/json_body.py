"""Strict JSON: what two parsers could read in two ways, or what costs more than its size, is refused."""

import json
import math
from typing import Any, Never

import msgspec

from serve_app.gateway.errors import InvalidJSON

MAX_DEPTH = 32
MAX_DIGITS = 40


def parse(body: bytes) -> dict[str, Any]:
    """The object in a body.

    Raises:
        InvalidJSON: not UTF-8 JSON, not an object, deeper than 32 levels, or with a name twice in an object, NaN,
            Infinity, a number that is out of range, or half of a surrogate pair.
    """
    try:
        value = _decoder.decode(body.decode())
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise InvalidJSON("The request body is not valid UTF-8.") from None
    except json.JSONDecodeError as error:
        raise InvalidJSON(f"The request body is not valid JSON (character {error.pos}).") from None
    if type(value) is not dict:
        raise InvalidJSON("The request body must be a JSON object.")
    _require_depth(value, MAX_DEPTH)
    if b"\\u" in body:
        _require_whole_characters(value)
    return value


def encode(value: dict[str, Any]) -> bytes:
    """The body for an object that `parse` gave."""
    return msgspec.json.encode(value)


def _require_whole_characters(value: dict[str, Any]) -> None:
    try:
        encode(value)
    except UnicodeEncodeError:
        raise InvalidJSON("The request body has a string with half of a surrogate pair.") from None


def _require_depth(value: Any, left: int) -> None:
    if left == 0:
        raise _too_deep()
    for child in value.values() if type(value) is dict else value:
        kind = type(child)
        if kind is dict or kind is list:
            _require_depth(child, left - 1)


def _too_deep() -> InvalidJSON:
    return InvalidJSON(f"The request body is nested deeper than {MAX_DEPTH} levels.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidJSON("The request body has an object with the same name twice.")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise InvalidJSON(f"The request body has a number of more than {MAX_DIGITS} digits.")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidJSON("The request body has a number that is out of range.")
    return value


def _constant(name: str) -> Never:
    raise InvalidJSON(f"The request body has {name}, which is not JSON.")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
