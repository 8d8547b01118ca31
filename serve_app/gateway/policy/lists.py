"""The rules that hold one other rule for all values inside."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve_app.gateway.policy.rules import Refusal, Rule, Schema, Text, View


@dataclass(frozen=True, slots=True)
class ListOf(Rule):
    item: Rule
    most: int
    least: int = 0
    kinds = frozenset({list})

    def check(self, value: Any, view: View) -> None:
        if type(value) is not list:
            raise Refusal("must be a list")
        if not self.least <= len(value) <= self.most:
            raise Refusal(f"must have from {self.least} to {self.most} items")
        if value:
            self.item.check_all(value, view)

    def schema(self) -> Schema:
        least = {"minItems": self.least} if self.least else {}
        return {"type": "array", "items": self.item.schema(), "maxItems": self.most, **least}

    def says(self) -> str:
        return f"list of {'at most' if not self.least else f'{self.least} to'} {self.most} of: {self.item.says()}"

    def inside(self) -> Iterator[tuple[str, Rule]]:
        return ((f"[]{path}", rule) for path, rule in self.item.inside())


@dataclass(frozen=True, slots=True)
class MapOf(Rule):
    value: Rule
    most: int
    name: Text
    kinds = frozenset({dict})

    def check(self, value: Any, view: View) -> None:
        if type(value) is not dict:
            raise Refusal("must be an object")
        if len(value) > self.most:
            raise Refusal(f"must have at most {self.most} entries")
        for name, item in value.items():
            try:
                self.name.check(name, view)
                self.value.check(item, view)
            except Refusal as refusal:
                raise refusal.under(name)  # noqa: B904 - the same one

    def schema(self) -> Schema:
        return {
            "type": "object",
            "propertyNames": self.name.schema(),
            "additionalProperties": self.value.schema(),
            "maxProperties": self.most,
        }

    def says(self) -> str:
        return f"object of at most {self.most} entries; name: {self.name.says()}; value: {self.value.says()}"
