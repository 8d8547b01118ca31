"""Bounds for the parameters of tools that the engine compiles to a grammar.

vLLM compiles the tools that the model must call, and those that are strict; the parameters of the others are text
of the prompt. Source: vllm/tool_parsers, get_json_schema_from_tools and the structural tags of strict tools.
"""

from typing import Any

from serve_app.gateway.policy.json_schema import JsonSchema
from serve_app.gateway.policy.rules import Refusal, View
from serve_app.gateway.policy.settings import PolicyConfig

MUST_CALL = frozenset({"required", "any"})


def check_tools(body: dict[str, Any], config: PolicyConfig, view: View) -> None:
    """Raise Refusal for a tool of a checked body whose parameters may be too costly to compile."""
    rule = JsonSchema(config.json_schema)
    for number, tool in enumerate(body.get("tools") or ()):
        function = tool.get("function", tool)
        if not (config.bound_all_tools or function.get("strict") or _must_call(body.get("tool_choice"), function)):
            continue
        for name in ("parameters", "input_schema"):
            if name not in function:
                continue
            try:
                rule.check(function[name], view)
            except Refusal as refusal:
                refusal.under(name)
                if function is not tool:
                    refusal.under("function")
                raise refusal.under(number).under("tools")  # noqa: B904 - the same one


def _must_call(choice: Any, function: dict[str, Any]) -> bool:
    if type(choice) is not dict:
        return choice in MUST_CALL
    named = choice.get("function", choice).get("name")
    return choice.get("type") in MUST_CALL or (named is not None and named == function.get("name"))
