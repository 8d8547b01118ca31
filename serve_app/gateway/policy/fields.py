"""The rules that hold other rules: objects, and choices between kinds of value."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from serve_app.gateway.errors import BadRequest, UnknownParameter, UnsupportedParameter
from serve_app.gateway.policy.rules import NOTHING, Kinds, Refusal, Rule, Schema, View, any_of, one_of, takes_nothing
from serve_app.gateway.policy.verdicts import Refused

Fields = Mapping[str, Rule]
JSON_KINDS = {str: "a string", list: "a list", dict: "an object", int: "an integer", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Object(Rule):
    """An object with these fields and no others. What passes but goes no further is removed from the value."""

    fields: Fields
    required: tuple[str, ...] = ()
    unknown: type[BadRequest] = UnknownParameter
    """What a field that is not listed is called."""
    kinds = frozenset({dict})
    verdict = "allowed"

    def check(self, value: Any, view: View) -> None:
        if type(value) is not dict:
            raise Refusal("must be an object")
        removed = []
        for name, item in value.items():
            rule = self.fields.get(name)
            if rule is None:
                raise Refusal("is not a parameter that can be set here", self.unknown).under(name)
            if item is None:
                removed.append(name)
                continue
            try:
                rule.check(item, view)
            except Refusal as refusal:
                raise refusal.under(name)  # noqa: B904 - the same one
            if rule.dropped:
                removed.append(name)
        for name in self.required:
            if value.get(name) is None:
                raise Refusal("is required").under(name)
        for name in removed:
            del value[name]

    def schema(self) -> Schema:
        properties = {name: rule.schema() for name, rule in self.fields.items()}
        if any(takes_nothing(properties[name]) for name in self.required):
            return NOTHING
        properties = {
            name: schema if name in self.required else _or_null(schema) for name, schema in properties.items()
        }
        required = {"required": list(self.required)} if self.required else {}
        return {"type": "object", "properties": properties, "additionalProperties": False, **required}

    def says(self) -> str:
        return "object of the fields below"

    def inside(self) -> Iterator[tuple[str, Rule]]:
        return ((f".{name}", rule) for name, rule in self.fields.items())


@dataclass(frozen=True, slots=True)
class Tagged(Rule):
    """An object whose kind one of its fields names."""

    tag: str
    variants: Mapping[str, Object]
    refused: Mapping[str, str] | None = None
    """Kinds that vLLM takes and this service does not, with the reason."""
    default: str | None = None
    """The kind of an object without the tag."""
    kinds = frozenset({dict})
    verdict = "allowed"

    def check(self, value: Any, view: View) -> None:
        if type(value) is not dict:
            raise Refusal("must be an object")
        tag = value.get(self.tag)
        name = self.default if tag is None else tag
        variant = self.variants.get(name) if type(name) is str else None
        if variant is not None:
            return variant.check(value, view)
        if tag is None:
            raise Refusal("is required").under(self.tag)
        if self.refused and type(tag) is str and tag in self.refused:
            raise Refusal(f"names a kind that is not taken: {self.refused[tag]}", UnsupportedParameter).under(self.tag)
        raise Refusal(f"must be one of: {', '.join(self.variants)}").under(self.tag)

    def schema(self) -> Schema:
        return any_of(self._variant(name, variant) for name, variant in self.variants.items())

    def _variant(self, name: str, variant: Object) -> Schema:
        schema = variant.schema()
        if takes_nothing(schema):
            return schema
        is_default = name == self.default
        tag = {self.tag: {"enum": [name, None] if is_default else [name]}}
        required = [*variant.required, *([] if is_default else [self.tag])]
        return schema | {"properties": schema["properties"] | tag, "required": required}

    def says(self) -> str:
        return f"object of the fields below, `{self.tag}` being {one_of(self.variants)}"

    def inside(self) -> Iterator[tuple[str, Rule]]:
        """A field that several kinds have is given once, with their names."""
        for kind, reason in (self.refused or {}).items():
            yield f".{self.tag}={kind}", Refused(reason)
        kinds: dict[tuple[str, int], list[str]] = {}
        for kind, variant in self.variants.items():
            for name, rule in variant.fields.items():
                if name != self.tag:
                    kinds.setdefault((name, id(rule)), []).append(kind)
        for (name, _), having in kinds.items():
            path = "" if len(having) == len(self.variants) else f"({'|'.join(having)})"
            yield f"{path}.{name}", self.variants[having[0]].fields[name]


class _Tag(Rule):
    """The tag field of a variant; `Tagged` has looked at it."""

    kinds = frozenset({str})

    def check(self, value: Any, view: View) -> None:
        return

    def schema(self) -> Schema:
        return {"type": "string"}

    def says(self) -> str:
        return "text"


def tagged(
    tag: str, refused: Mapping[str, str] | None = None, default: str | None = None, **variants: Object
) -> Tagged:
    """A `Tagged` whose variants leave the tag field out."""
    own = {name: Object({tag: _Tag(), **variant.fields}, variant.required) for name, variant in variants.items()}
    return Tagged(tag, own, refused, default)


class Either(Rule):
    """One of several rules, chosen by the kind of JSON value."""

    def __init__(self, *options: Rule) -> None:
        self._options = options
        self.kinds = frozenset[type]().union(*(option.kinds for option in options))

    def check(self, value: Any, view: View) -> None:
        self._option(type(value)).check(value, view)

    def check_all(self, values: list[Any], view: View) -> None:
        kinds = set(map(type, values))
        if len(kinds) == 1 and kinds <= self.kinds:
            return self._option(kinds.pop()).check_all(values, view)
        Rule.check_all(self, values, view)

    def schema(self) -> Schema:
        return any_of(option.schema() for option in self._options)

    def says(self) -> str:
        return "; or ".join(option.says() for option in self._options)

    def inside(self) -> Iterator[tuple[str, Rule]]:
        for option in self._options:
            yield from option.inside()

    def _option(self, kind: type) -> Rule:
        for option in self._options:
            if kind in option.kinds:
                return option
        raise Refusal(f"must be {' or '.join(text for kind, text in JSON_KINDS.items() if kind in self.kinds)}")


@dataclass(frozen=True, slots=True)
class Json(Rule):
    """Any JSON value of the given kinds; the bounds of the body bound it."""

    kinds: Kinds = frozenset({dict})
    verdict = "allowed"

    def check(self, value: Any, view: View) -> None:
        if type(value) not in self.kinds:
            raise Refusal(f"must be {' or '.join(text for kind, text in JSON_KINDS.items() if kind in self.kinds)}")

    def schema(self) -> Schema:
        return any_of({"type": name} for kind, name in ((dict, "object"), (list, "array")) if kind in self.kinds)

    def says(self) -> str:
        return " or ".join(f"any {name}" for kind, name in ((dict, "object"), (list, "list")) if kind in self.kinds)


@dataclass(frozen=True)
class Sized(Rule):
    rule: Rule
    most: int
    """Bytes of the value as JSON."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", self.rule.kinds)

    def check(self, value: Any, view: View) -> None:
        self.rule.check(value, view)
        if json_size(value) > self.most:
            raise Refusal(f"must be at most {self.most} bytes as JSON")

    def schema(self) -> Schema:
        return {**self.rule.schema(), "x-max-bytes": self.most}

    def says(self) -> str:
        return f"at most {self.most} bytes as JSON; {self.rule.says()}"

    def inside(self) -> Iterator[tuple[str, Rule]]:
        return self.rule.inside()


def json_size(value: Any) -> int:
    """Bytes of a value as JSON."""
    return len(msgspec.json.encode(value))


def _or_null(schema: Schema) -> Schema:
    if takes_nothing(schema):
        return {"type": "null"} | {name: value for name, value in schema.items() if name != "not"}
    return {"anyOf": [schema, {"type": "null"}]}
