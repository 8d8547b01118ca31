"""The rules that say what becomes of a field: for some callers only, removed, replaced, or refused."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve_app.gateway.errors import UnsupportedParameter
from serve_app.gateway.policy.rules import NOTHING, Refusal, Rule, Schema, View


@dataclass(frozen=True)
class Needs(Rule):
    """A rule for callers with a feature. The others may send a value that changes nothing."""

    feature: str
    rule: Rule
    off: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", self.rule.kinds)

    def check(self, value: Any, view: View) -> None:
        if self.feature not in view.features:
            if _is_off(value, self.off):
                return
            raise Refusal(f"needs a key with the feature `{self.feature}`", UnsupportedParameter)
        self.rule.check(value, view)

    def schema(self) -> Schema:
        return {**_only(self.off), "x-needs-feature": self.feature}

    @property
    def verdict(self) -> str:
        return f"feature `{self.feature}`"

    def says(self) -> str:
        return f"{self.rule.says()}{_also(self.off)}"

    def inside(self) -> Iterator[tuple[str, Rule]]:
        return self.rule.inside()


class Ignored(Rule):
    """A field of clients that means nothing here: checked, and removed."""

    dropped = True
    verdict = "removed"

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.kinds = rule.kinds

    def check(self, value: Any, view: View) -> None:
        self._rule.check(value, view)

    def schema(self) -> Schema:
        return self._rule.schema()

    def says(self) -> str:
        return self._rule.says()


@dataclass(frozen=True)
class Forced(Rule):
    """A field that clients may send and that then has our value, sent or not."""

    rule: Rule
    value: Any
    verdict = "set by us"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", self.rule.kinds)

    def check(self, value: Any, view: View) -> None:
        self.rule.check(value, view)

    def schema(self) -> Schema:
        return self.rule.schema()

    def says(self) -> str:
        return f"always {_json(self.value)}"


@dataclass(frozen=True)
class Refused(Rule):
    """A field of vLLM or of other services that callers may not set, but to a value that changes nothing."""

    reason: str
    off: tuple[Any, ...] = ()
    kinds = frozenset()
    dropped = True
    verdict = "refused"

    def check(self, value: Any, view: View) -> None:
        if not _is_off(value, self.off):
            raise Refusal(f"cannot be set: {self.reason}", UnsupportedParameter)

    def schema(self) -> Schema:
        return {**_only(self.off), "description": f"Cannot be set: {self.reason}."}

    def says(self) -> str:
        return f"{self.reason}{_also(self.off)}"


class SetByUs(Refused):
    """A field whose value is the service's own."""

    verdict = "set by us"

    def __init__(self, source: str) -> None:
        super().__init__(f"the service sets it from {source}")
        self._source = source

    def says(self) -> str:
        return f"from {self._source}"


def _is_off(value: Any, off: tuple[Any, ...]) -> bool:
    return any(type(value) is type(each) and value == each for each in off)


def _also(off: tuple[Any, ...]) -> str:
    return f"; {_json(off[0])} may be sent, and changes nothing" if off else ""


def _json(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _only(off: tuple[Any, ...]) -> Schema:
    return {"enum": list(off)} if off else NOTHING
