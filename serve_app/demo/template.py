"""The demo model's chat template, and the same rendering in Python with the spans that are trained.

Turns have the ChatML form; tools stand in the system turn, one signature a line; calls have the form that vLLM's
`hermes` tool parser reads. A turn of the assistant opens with its thoughts, which are empty unless
`enable_thinking` is given, so that a conversation without thoughts keeps the prefix that is already cached.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BOS, HEADER, EOS = "<|bos|>", "<|im_start|>", "<|im_end|>"
MARKUP = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
NO_THOUGHT = "<think>\n\n</think>\n\n"

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if messages and messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- if system or tools %}
    {{- '<|im_start|>system\\n' + (system or '') }}
    {%- if tools %}
        {{- '\\n\\n' if system }}
        {{- 'Tools:' }}
        {%- for tool in tools %}
            {%- set function = tool.function %}
            {%- set parameters = function.parameters or {} %}
            {{- '\\n' + function.name + '(' }}
            {%- for name, argument in (parameters.properties or {}).items() %}
                {{- ', ' if not loop.first }}
                {{- name + ('' if name in (parameters.required or []) else '?') + ': ' }}
                {{- argument.enum | join('|') if argument.enum else (argument.type or 'any') | string }}
            {%- endfor %}
            {{- ')' + (': ' + function.description if function.description else '') }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}
        {%- set arguments = call.function.arguments %}
        {{- '\\n' if message.content or not loop.first }}
        {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- (arguments if arguments is string else arguments | tojson) + '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool."""

    name: str
    arguments: dict[str, Any]

    def text(self) -> str:
        """As the model writes it."""
        body = json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)
        return f"<tool_call>\n{body}\n</tool_call>"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. `thought` is what the assistant thinks aloud; null: thinking is off."""

    role: str
    content: str
    thought: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, and what stands before them. `tools` have OpenAI's form."""

    turns: list[Turn]
    system: str | None = None
    tools: Sequence[dict[str, Any]] = ()

    def pieces(self) -> list[tuple[str, bool]]:
        """The prompt's text as the template renders it, in pieces: text, and whether the model writes it."""
        pieces = [(BOS, False)]
        if self.system or self.tools:
            tools = "\n".join(["Tools:", *map(signature, self.tools)]) if self.tools else ""
            system = "\n\n".join(filter(None, [self.system, tools]))
            pieces.append((f"{HEADER}system\n{system}{EOS}\n", False))
        for turn in self.turns:
            pieces.append((f"{HEADER}{turn.role}\n", False))
            if turn.role != "assistant":
                pieces.append((f"{turn.content}{EOS}\n", False))
                continue
            if turn.thought is None:
                pieces.append((NO_THOUGHT, False))
            else:
                pieces.append((f"<think>\n{turn.thought}\n</think>\n\n", True))
            pieces += [(f"{turn.content}{EOS}", True), ("\n", False)]
        return pieces


def signature(tool: dict[str, Any]) -> str:
    """A tool as one line: `name(argument: type, optional?: one|two): Description`."""
    function = tool["function"]
    parameters = function.get("parameters", {})
    required = parameters.get("required", [])
    arguments = ", ".join(
        f"{name}{'' if name in required else '?'}: {'|'.join(argument.get('enum', [])) or argument['type']}"
        for name, argument in parameters.get("properties", {}).items()
    )
    return f"{function['name']}({arguments}): {function['description']}"
