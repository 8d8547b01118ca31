"""Prompts as text or token ids, one or several."""

from typing import Any

from serve_app.gateway.policy.fields import Either
from serve_app.gateway.policy.lists import ListOf
from serve_app.gateway.policy.rules import Int, Rule, Schema, Text, View, any_of
from serve_app.gateway.policy.verdicts import Needs


class Prompts(Rule):
    """A text, a list of texts, a list of token ids, or a list of such lists."""

    kinds = frozenset({str, list})

    def __init__(self, most: int, most_tokens: int, feature: str | None = None) -> None:
        """At most `most` prompts of at most `most_tokens` token ids each; token ids only with the feature."""
        text = Text(least=1, prompt=True)
        tokens: Rule = ListOf(Int(0), most_tokens, least=1)
        if feature is not None:
            tokens = Needs(feature, tokens)
        self._tokens = tokens
        self._texts = Either(text, ListOf(Either(text, tokens), most, least=1))

    def check(self, value: Any, view: View) -> None:
        (self._tokens if _is_one_of_tokens(value) else self._texts).check(value, view)

    def schema(self) -> Schema:
        return any_of([self._texts.schema(), self._tokens.schema()])

    def says(self) -> str:
        return f"{self._texts.says()}; or one {self._tokens.says()}"


def number_of_prompts(value: Any) -> int:
    """How many prompts a value is that `Prompts` lets pass."""
    return len(value) if type(value) is list and not _is_one_of_tokens(value) else 1


def _is_one_of_tokens(value: Any) -> bool:
    return type(value) is list and bool(value) and type(value[0]) in Int.kinds
