"""The rules that say what becomes of a field: for some callers only, removed, replaced, or refused."""

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


class Ignored(Rule):
    """A field of clients that means nothing here: checked, and removed."""

    dropped = True

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.kinds = rule.kinds

    def check(self, value: Any, view: View) -> None:
        self._rule.check(value, view)

    def schema(self) -> Schema:
        return self._rule.schema()


@dataclass(frozen=True)
class Forced(Rule):
    """A field that clients may send and that then has our value, sent or not."""

    rule: Rule
    value: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", self.rule.kinds)

    def check(self, value: Any, view: View) -> None:
        self.rule.check(value, view)

    def schema(self) -> Schema:
        return self.rule.schema()


@dataclass(frozen=True)
class Refused(Rule):
    """A field of vLLM or of other services that callers may not set, but to a value that changes nothing."""

    reason: str
    off: tuple[Any, ...] = ()
    kinds = frozenset()
    dropped = True

    def check(self, value: Any, view: View) -> None:
        if not _is_off(value, self.off):
            raise Refusal(f"cannot be set: {self.reason}", UnsupportedParameter)

    def schema(self) -> Schema:
        return {**_only(self.off), "description": f"Cannot be set: {self.reason}."}


class SetByUs(Refused):
    """A field whose value is the service's own."""

    def __init__(self, source: str) -> None:
        super().__init__(f"the service sets it from {source}")


def _is_off(value: Any, off: tuple[Any, ...]) -> bool:
    return any(type(value) is type(each) and value == each for each in off)


def _only(off: tuple[Any, ...]) -> Schema:
    return {"enum": list(off)} if off else NOTHING
