"""JSON schemas that clients send and the engine compiles to a grammar: bounded, and without regular expressions.

Sources: vLLM issues #54003, #54090 and #45172 (no time limit on compiling), CVE-2026-55574 (regular expressions).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve_app.gateway.errors import InvalidJSON, InvalidSchema
from serve_app.gateway.policy.fields import json_size
from serve_app.gateway.policy.json_body import parse
from serve_app.gateway.policy.rules import Refusal, Rule, Schema, View
from serve_app.gateway.policy.settings import SchemaBounds

NAMED = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
LITERAL = frozenset({"const", "default", "enum", "example", "examples"})
REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})


@dataclass(frozen=True, slots=True)
class JsonSchema(Rule):
    bounds: SchemaBounds
    kinds = frozenset({dict})

    def check(self, value: Any, view: View) -> None:
        if type(value) is not dict:
            raise Refusal("must be an object")
        if json_size(value) > self.bounds.bytes:
            raise _bad(f"must be at most {self.bounds.bytes} bytes as JSON")
        properties = values = 0
        for keyword, item in _keywords(value, self.bounds.depth):
            if keyword == "properties" and type(item) is dict:
                properties += len(item)
            elif keyword == "enum" and type(item) is list:
                values += len(item)
            else:
                self._check_keyword(keyword, item)
        if properties > self.bounds.properties:
            raise _bad(f"must have at most {self.bounds.properties} properties in all")
        if values > self.bounds.values:
            raise _bad(f"must have at most {self.bounds.values} enum values in all")

    def _check_keyword(self, keyword: str, item: Any) -> None:
        if keyword in {"pattern", "patternProperties"}:
            raise _bad(f"must not have `{keyword}`: regular expressions are not taken")
        if keyword in REFERENCES and not (type(item) is str and item.startswith("#")):
            raise _bad(f"must have `{keyword}` only within the schema itself, as in #/$defs/name")
        if keyword in COUNTS and not (type(item) in {int, float} and 0 <= item <= self.bounds.repeats):
            raise _bad(f"must have `{keyword}` from 0 to {self.bounds.repeats}")

    def schema(self) -> Schema:
        """JSON schema cannot say what holds of all levels together; the description does."""
        return {"type": "object", "description": f"A {self.says()}.", "x-max-bytes": self.bounds.bytes}

    def says(self) -> str:
        b = self.bounds
        return (
            f"JSON schema of at most {b.bytes} bytes, {b.depth} levels, {b.properties} properties and {b.values} enum "
            f"values in all, without regular expressions and outer references, whose lengths and counts are at most "
            f"{b.repeats}"
        )


@dataclass(frozen=True, slots=True)
class JsonSchemaText(Rule):
    """A JSON schema written out as a string."""

    rule: JsonSchema
    kinds = frozenset({str})

    def check(self, value: Any, view: View) -> None:
        try:
            schema = parse(value.encode())
        except (InvalidJSON, UnicodeEncodeError):
            raise _bad("must be a JSON object") from None
        self.rule.check(schema, view)

    def schema(self) -> Schema:
        return {"type": "string", "contentMediaType": "application/json", "contentSchema": self.rule.schema()}

    def says(self) -> str:
        return "the same as text"


def _keywords(schema: dict[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    """Each keyword of a schema and of the schemas in it. Names of properties and literal values are no keywords."""
    nodes: list[tuple[Any, int, str]] = [(schema, 1, "schema")]
    while nodes:
        node, level, kind = nodes.pop()
        if level > depth:
            raise _bad(f"must be nested at most {depth} levels deep")
        if type(node) is list:
            nodes += [(item, level + 1, kind) for item in node if type(item) in {dict, list}]
            continue
        for name, item in node.items():
            if kind == "schema":
                yield name, item
            if type(item) in {dict, list}:
                nodes.append((item, level + 1, _kind_below(kind, name)))


def _kind_below(kind: str, name: str) -> str:
    if kind == "schema":
        return "names" if name in NAMED else "literal" if name in LITERAL else "schema"
    return "schema" if kind == "names" else kind


def _bad(says: str) -> Refusal:
    return Refusal(says, InvalidSchema)
