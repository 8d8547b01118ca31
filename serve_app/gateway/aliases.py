"""Aliases: names that stand for one of several models, by weight, and the same one for all of a conversation."""

import hashlib
import math
from collections.abc import Container, Mapping
from typing import Annotated, Any, Self

import msgspec
from pydantic import BeforeValidator, Field, NonNegativeInt, TypeAdapter, ValidationError, model_validator

from serve_app.gateway.errors import Headers
from serve_app.settings import Closed, ConfigError, ModelId, describe_errors

# By which a client says which of its requests belong together.
CONVERSATION_HEADER = b"x-conversation-id"


class Alias(Closed):
    """The models that a name stands for. `{v1: 90, v2: 10}` is short for `models: {v1: 90, v2: 10}`."""

    models: dict[ModelId, NonNegativeInt] = Field(min_length=1)
    """Weights of the models: shares of the conversations."""
    fallback: ModelId | None = None
    """The model that answers instead where the chosen one cannot take a request."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(self.models.values()):
            raise ValueError("all weights are 0")
        return self

    def choose(self, conversation: bytes, served: Container[str]) -> str | None:
        """The model that a conversation gets, of those that are served; None: none is.

        Weighted rendezvous hashing: where weights change, only as many conversations move as have to.
        """
        weights = {name: weight for name, weight in self.models.items() if weight and name in served}
        return max(weights, key=lambda name: weights[name] / _draw(conversation, name), default=None)


def _draw(conversation: bytes, name: str) -> float:
    """A number from the exponential distribution that hashing decides."""
    digest = hashlib.blake2b(conversation + name.encode(), digest_size=8).digest()
    return -math.log((int.from_bytes(digest, "big") + 1) / (2**64 + 1))


def _as_alias(value: Any) -> Any:
    return {"models": value} if isinstance(value, dict) and "models" not in value else value


Aliases = dict[ModelId, Annotated[Alias, BeforeValidator(_as_alias)]]
_aliases = TypeAdapter[dict[str, Alias]](Aliases)


def read_aliases(value: Any) -> dict[str, Alias]:
    """The `aliases` of a service's arguments.

    Raises:
        ConfigError: they are wrong.
    """
    try:
        return _aliases.validate_python(value or {})
    except ValidationError as error:
        raise ConfigError(f"aliases: {describe_errors(error)}") from error


def check_names(aliases: Mapping[str, Alias], models: Mapping[str, str | None]) -> None:
    """Raise ConfigError where an alias or a fallback does not fit the models.

    `models`: of each id its fallback.
    """
    for name, alias in aliases.items():
        if name in models:
            raise ConfigError(f"aliases: {name} is also the id of a model")
        for target in (*alias.models, *filter(None, [alias.fallback])):
            if target not in models:
                raise ConfigError(f"aliases: {name}: no model {target} is listed")
    for name, fallback in models.items():
        if fallback is not None and (fallback not in models or fallback == name):
            raise ConfigError(f"model {name}: fallback: no other model {fallback} is listed")


def conversation_of(key_id: str, headers: Headers, fields: Any) -> bytes:
    """What all requests of a conversation have in common, and few others.

    The key, and the first of: the header `x-conversation-id`; the body's `user`; how the conversation begins, to the
    first message of its user.
    """
    body = fields if isinstance(fields, dict) else {}
    said = dict(headers).get(CONVERSATION_HEADER, b"").decode("latin-1")
    user = body.get("user")
    if name := said or (user if isinstance(user, str) else ""):
        return msgspec.json.encode([key_id, name])
    turns = next((body[name] for name in ("messages", "input", "prompt") if name in body), None)
    return msgspec.json.encode([key_id, body.get("system"), body.get("instructions"), _opening(turns)])


def _opening(turns: Any) -> Any:
    if not isinstance(turns, list):
        return turns
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    return turns[: roles.index("user") + 1] if "user" in roles else turns
