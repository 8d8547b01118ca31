"""What an entry of the table can say of a field, each as a check, as JSON schema and in words.

A value of null is the same as an absent field, everywhere but inside free JSON, because clients write out the
fields that they leave unset.

Rule
    Bool Int Number Text OneOf  rules.py     one value, in bounds
    ListOf MapOf                lists.py     values inside, by one rule
    Object Tagged               fields.py    values inside, each by its own rule
    Either                      fields.py    one of several kinds
    Json                        fields.py    any JSON
    Sized                       fields.py    a rule, and a size as JSON
    Needs                       verdicts.py  a rule, for callers with a feature
    Ignored                     verdicts.py  a rule, and the value goes no further
    Forced                      verdicts.py  a rule, and the value is then replaced by ours
    Refused, SetByUs            verdicts.py  nothing
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from serve_app.gateway.errors import BadRequest, InvalidContent

Schema = dict[str, Any]
Kinds = frozenset[type]

NOTHING: Schema = {"not": {}}
"""What no value fits: the JSON schema of a field that callers without features may not set."""
INT64 = 2**63


@dataclass(slots=True)
class View:
    """What a check knows of the request besides the value."""

    features: frozenset[str]
    media: bool
    """The model takes images and audio."""
    placeholders: Sequence[str] = ()
    """What a text may not contain."""
    images: int = 0
    """Images seen so far."""
    chars: int = 0
    """Characters of the prompt's texts seen so far."""
    longest: int = 0
    """Characters of the longest of them."""


class Refusal(Exception):
    """A value breaks a rule. The path grows from the value outwards as it is raised."""

    def __init__(self, says: str, error: type[BadRequest] = BadRequest) -> None:
        self._says = says
        self._error = error
        self._path: list[str] = []

    def under(self, name: object) -> "Refusal":
        self._path.append(str(name)[:64])
        return self

    def as_error(self) -> BadRequest:
        """For the client: the field's path and what it must be, never the value."""
        path = ".".join(reversed(self._path))
        return self._error(f"`{path}` {self._says}.", param=path)


class Rule(ABC):
    kinds: Kinds
    """The Python types of the JSON values that the rule may take."""
    dropped: ClassVar[bool] = False
    """A value that passes goes no further."""

    @abstractmethod
    def check(self, value: Any, view: View) -> None:
        """Raise Refusal if the value breaks the rule."""

    def check_all(self, values: list[Any], view: View) -> None:
        """`check` for each item of a list."""
        for number, value in enumerate(values):
            try:
                self.check(value, view)
            except Refusal as refusal:
                raise refusal.under(number)  # noqa: B904 - the same one

    @abstractmethod
    def schema(self) -> Schema:
        """The rule as JSON schema, for callers without features and models without media."""

    @property
    def verdict(self) -> str:
        """What becomes of a field with this rule, in a word or two."""
        return "bounded"

    @abstractmethod
    def says(self) -> str:
        """What the value may be, or why there may be none, in Markdown."""

    def inside(self) -> Iterator[tuple[str, "Rule"]]:
        """The rules of the fields within a value, each with its path from there, such as `.name` or `[].name`."""
        return iter(())


@dataclass(frozen=True, slots=True)
class Bool(Rule):
    kinds = frozenset({bool})
    verdict = "allowed"

    def check(self, value: Any, view: View) -> None:
        if value is not True and value is not False:
            raise Refusal("must be true or false")

    def schema(self) -> Schema:
        return {"type": "boolean"}

    def says(self) -> str:
        return "true or false"


@dataclass(frozen=True, slots=True)
class Int(Rule):
    least: int = -INT64
    most: int = INT64 - 1
    kinds = frozenset({int, float})

    def check(self, value: Any, view: View) -> None:
        kind = type(value)
        whole = kind is int or (kind is float and value.is_integer())
        if not whole or not self.least <= value <= self.most:
            raise Refusal(f"must be an integer from {self.least} to {self.most}")

    def check_all(self, values: list[Any], view: View) -> None:
        if set(map(type, values)) == {int} and self.least <= min(values) and max(values) <= self.most:
            return
        Rule.check_all(self, values, view)

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}

    def says(self) -> str:
        if self.most < INT64 - 1:
            return f"whole number, {self.least} to {self.most}"
        return "whole number of 64 bits" if self.least == -INT64 else f"whole number from {self.least}"


@dataclass(frozen=True, slots=True)
class Number(Rule):
    least: float
    most: float
    above: bool = False
    """The least itself is not allowed."""
    kinds = frozenset({int, float})

    def check(self, value: Any, view: View) -> None:
        if (
            type(value) not in self.kinds
            or not self.least <= value <= self.most
            or (self.above and value == self.least)
        ):
            least = f"above {self.least:g} and up" if self.above else f"from {self.least:g}"
            raise Refusal(f"must be a number {least} to {self.most:g}")

    def schema(self) -> Schema:
        return {"type": "number", "exclusiveMinimum" if self.above else "minimum": self.least, "maximum": self.most}

    def says(self) -> str:
        return f"number, {'above ' if self.above else ''}{self.least:g} to {self.most:g}"


@dataclass(frozen=True, slots=True)
class Text(Rule):
    most: int | None = None
    least: int = 0
    pattern: str | None = None
    """What the whole text must match, of characters that every regular expression dialect agrees on."""
    prompt: bool = False
    """The text becomes part of the prompt, so it may not hold what stands for media there."""
    kinds = frozenset({str})

    def check(self, value: Any, view: View) -> None:
        if type(value) is not str:
            raise Refusal("must be a string")
        if self.most is not None and len(value) > self.most:
            raise Refusal(f"must be a string of at most {self.most} characters")
        if len(value) < self.least:
            raise Refusal(f"must be a string of at least {self.least} characters")
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            raise Refusal(f"must be a string that matches {self.pattern}")
        if self.prompt:
            view.chars += len(value)
            view.longest = max(view.longest, len(value))
            if any(token in value for token in view.placeholders):
                raise Refusal("has a token that stands for media; send the media as content parts", InvalidContent)

    def schema(self) -> Schema:
        bounds = {"minLength": self.least or None, "maxLength": self.most}
        bounds["pattern"] = f"^{self.pattern}$" if self.pattern else None  # type: ignore[assignment]
        return {"type": "string"} | {name: bound for name, bound in bounds.items() if bound is not None}

    @property
    def verdict(self) -> str:
        return "bounded" if self.pattern or self.most is not None else "allowed"

    def says(self) -> str:
        if self.pattern is not None:
            return f"text that matches `{self.pattern}`"
        if self.most is None:
            return "text" if not self.least else "text, not empty"
        return f"text of {'at most' if not self.least else f'{self.least} to'} {self.most} characters"


@dataclass(frozen=True)
class OneOf(Rule):
    values: tuple[str, ...]
    kinds = frozenset({str})

    def __init__(self, *values: str) -> None:
        object.__setattr__(self, "values", values)

    def check(self, value: Any, view: View) -> None:
        if type(value) is not str or value not in self.values:
            raise Refusal(f"must be one of: {', '.join(self.values)}")

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.values)}

    def says(self) -> str:
        return one_of(self.values)


def one_of(values: Iterable[str]) -> str:
    *others, last = (f"`{value}`" for value in values)
    return f"{', '.join(others)} or {last}" if others else last


def takes_nothing(schema: Schema) -> bool:
    return bool(schema.get("not") == {})


def any_of(schemas: Iterable[Schema]) -> Schema:
    """What fits one of these schemas at least."""
    options = [schema for schema in schemas if not takes_nothing(schema)]
    if len(options) == 1:
        return options[0]
    return {"anyOf": options} if options else NOTHING
