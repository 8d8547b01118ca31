"""A request held against the policy: headers first, then the body, field by field."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncGenerator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

from starlette.datastructures import Headers as StarletteHeaders
from starlette.formparsers import MultiPartException, MultiPartParser

from serve_app.gateway.errors import BadRequest, Headers, HeadersTooLarge, TooLarge, UnsupportedMedia
from serve_app.gateway.policy.entries import RoutePolicy
from serve_app.gateway.policy.fields import Object
from serve_app.gateway.policy.forms import value_of, with_field, with_value
from serve_app.gateway.policy.json_body import encode, parse
from serve_app.gateway.policy.prompts import number_of_prompts
from serve_app.gateway.policy.rules import Refusal, View
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.table import table
from serve_app.gateway.policy.tools import check_tools
from serve_app.gateway.policy.verdicts import Forced
from serve_app.gateway.routes import ModelRoute


class Asker(Protocol):
    """What the policy needs to know of a caller."""

    @property
    def features(self) -> frozenset[str]:
        """What it may beyond the rest."""

    @property
    def max_tokens(self) -> int | None:
        """Output tokens of one request of its."""

    @property
    def cache_group(self) -> str:
        """Whose prefix cache it shares."""


class Asked(NamedTuple):
    """A body that has been read and not been checked."""

    fields: dict[str, Any] | list[tuple[str, str]]
    """A JSON object, or the texts of a form."""
    model: str | None
    """None: the body names none that could be one."""

    @property
    def streams(self) -> bool:
        """Whether the answer is to be a stream; once it has been checked."""
        return isinstance(self.fields, dict) and self.fields.get("stream") is True


class Checked(NamedTuple):
    """A request that may go to vLLM."""

    body: bytes
    bounded: bool
    """Whether the length of the answer is the client's choice."""
    prompts: int
    """How many prompts are known to come of it."""
    choices: int
    """Answers to each prompt."""
    chars: int = 0
    """Characters of the longest prompt, as far as they are known to become part of it."""
    chat: dict[str, Any] | None = None
    """The body, where the model's template makes turns of it."""


class Policy:
    """The table, with the settings applied."""

    def __init__(self, config: PolicyConfig, secret: bytes) -> None:
        """`secret`: from which the salts of the prefix cache are made; the same in all gateways."""
        self._config = config
        self._secret = secret
        self._routes = table(config)

    def check_head(self, target: bytes, headers: Headers) -> None:
        """Raise HeadersTooLarge for a request target and headers that are too long, whatever the route."""
        size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers)
        if len(headers) > self._config.headers or size > self._config.header_bytes:
            most, count = self._config.header_bytes, self._config.headers
            raise HeadersTooLarge(f"The request has more than {count} headers, or over {most} bytes before its body.")

    def check_content(self, route: ModelRoute, headers: Headers) -> None:
        """Raise UnsupportedMedia for a body that is not of the route's kind."""
        given = dict(headers)
        if given.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMedia("Send the body as it is, without Content-Encoding.")
        wanted = b"multipart/form-data" if route.multipart else b"application/json"
        kind = given.get(b"content-type", b"" if route.multipart else wanted)
        if kind.partition(b";")[0].strip().lower() != wanted:
            raise UnsupportedMedia(f"The body must be {wanted.decode()}.")

    def body_limit(self, route: ModelRoute) -> int:
        """Bytes that the body of some model on this route may have."""
        media = self._config.media
        return media.body_bytes if route.multipart or media.models else self._config.body_bytes

    async def read(self, route: ModelRoute, headers: Headers, body: bytes) -> Asked:
        """What a body asks for, and of which model.

        Raises:
            BadRequest: the body cannot be read.
        """
        fields = await _texts(headers, body) if route.multipart else parse(body)
        model = dict(fields).get("model")
        return Asked(fields, model if isinstance(model, str) else None)

    async def check(self, route: ModelRoute, headers: Headers, body: bytes, asked: Asked, caller: Asker) -> Checked:
        """Hold what was read of a body against the table of its route, and put in what is ours.

        Raises:
            BadRequest: a field is unknown, refused, out of its bounds or missing.
            TooLarge: the body is too large for a model that takes no media.
        """
        policy, value = self._routes[route.path], asked.fields
        if isinstance(value, list):
            return self._check_form(policy, headers, body, value, caller)
        name = value.get("model")
        view = self._view(name, caller)
        if not view.media and len(body) > self._config.body_bytes:
            raise TooLarge(f"The request body is over {self._config.body_bytes} bytes.")
        if route.model_required and name is None:
            raise BadRequest("`model` is required.", param="model")
        if view.media:  # an image is decoded to be judged
            await asyncio.to_thread(self._check, policy, value, view)
        else:
            self._check(policy, value, view)
        bounded = self._bound(policy, value, caller)
        self._put_in(policy, value, caller)
        if route.stream_by_default:
            value.setdefault("stream", True)
        choices = int(value.get("n") or 1) if "n" in policy.fields else 1
        prompts = number_of_prompts(value.get("prompt"))
        chat = value if policy.chat else None
        return Checked(encode(value), bounded, prompts, choices, _chars(policy, value, view), chat)

    def _view(self, name: Any, caller: Asker) -> View:
        bounds = self._config.media
        media = isinstance(name, str) and any(fnmatchcase(name, glob) for glob in bounds.models)
        # A body that names no model may be for one that takes media.
        guarded = media or (name is None and bool(bounds.models))
        return View(caller.features, media, bounds.placeholders if guarded else ())

    def _check(self, policy: RoutePolicy, value: dict[str, Any], view: View) -> None:
        try:
            Object(policy.fields, policy.required).check(value, view)
            check_tools(value, self._config, view)
        except Refusal as refusal:
            raise refusal.as_error() from None

    def _bound(self, policy: RoutePolicy, value: dict[str, Any], caller: Asker) -> bool:
        """Keep the answer within what the caller may have; tells whether the client chose a length."""
        given = [name for name in policy.length if name in value]
        limits = [most for most in (caller.max_tokens, self._config.max_tokens) if most is not None]
        most = min(limits, default=None)
        if most is not None and policy.length:
            for name in given:
                if value[name] > most:
                    raise BadRequest(f"`{name}` must be at most {most}, the limit of this key.", param=name)
            if not given:
                value[policy.length[0]] = min(most, policy.default_length or most)
        return bool(given) or policy.default_length is not None

    def _put_in(self, policy: RoutePolicy, value: dict[str, Any], caller: Asker) -> None:
        for name, rule in policy.fields.items():
            if isinstance(rule, Forced):
                value[name] = rule.value
        if "cache_salt" in policy.fields:
            value["cache_salt"] = hmac.digest(self._secret, caller.cache_group.encode(), hashlib.sha256).hex()

    def _check_form(
        self, policy: RoutePolicy, headers: Headers, body: bytes, texts: list[tuple[str, str]], caller: Asker
    ) -> Checked:
        view = View(caller.features, media=True)
        values: dict[str, Any] = {}
        for name, text in texts:
            if name in values and not name.endswith("[]"):
                raise BadRequest(f"`{name[:64]}` is given more than once.", param=name[:64])
            rule = policy.fields.get(name)
            values[name] = text if rule is None else value_of(text, rule)
            self._check(policy, {name: values[name]}, view)
        given = set(values)
        bounded = self._bound(policy, values, caller)
        for name in values.keys() - given:
            body = with_field(headers, body, name, values[name])
        return Checked(body, bounded, prompts=1, choices=1)


def for_model(asked: Asked, headers: Headers, body: bytes, model: str) -> tuple[Asked, bytes]:
    """A request and its body, for the model of this id in place of the name that it was sent with, or of none."""
    named = dict(asked.fields).get("model")
    if named == model or (named is not None and asked.model is None):  # a name that is no text is refused later
        return asked, body
    if isinstance(asked.fields, dict):
        return Asked({**asked.fields, "model": model}, model), body
    if named is None:
        return Asked([*asked.fields, ("model", model)], model), with_field(headers, body, "model", model)
    texts = [(name, model if name == "model" else text) for name, text in asked.fields]
    return Asked(texts, model), with_value(headers, body, "model", model)


def _chars(policy: RoutePolicy, value: dict[str, Any], view: View) -> int:
    if value.get("truncate_prompt_tokens") is not None:
        return 0  # it is cut
    return view.chars if policy.chat else view.longest


async def _texts(headers: Headers, body: bytes) -> list[tuple[str, str]]:
    """The fields of a form beside its file."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(StarletteHeaders(raw=headers), stream(), max_fields=100, max_files=1).parse()
    except MultiPartException as error:
        raise BadRequest("The form could not be read.") from error
    await form.close()
    texts = [(name, text) for name, text in form.multi_items() if isinstance(text, str)]
    if not any(name == "file" for name, text in form.multi_items() if not isinstance(text, str)):
        raise BadRequest("`file` is required.", param="file")
    return texts
