"""Conversations to train on, drawn without end from the corpus, the tools and arithmetic."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from zlib import crc32

from serve_app.demo.corpus import Argument, Entry, Sum, Tool, Tools, read_entries, read_sums, read_tools
from serve_app.demo.phrasing import Phrasing, read_phrasing
from serve_app.demo.template import Call, Conversation, Turn
from serve_app.demo.values import Values, placeholders, plain_words

NUMBERS = ("integer", "number")
GOES_ON = "The user asks on about my last answer. I know this."


@dataclass(frozen=True, slots=True)
class Corpus:
    """All that examples are made from."""

    entries: list[Entry]
    tools: Tools
    sums: list[Sum]
    phrasing: Phrasing


def read_corpus() -> Corpus:
    """The shipped one."""
    return Corpus(read_entries(), read_tools(), read_sums(), read_phrasing())


@dataclass(frozen=True, slots=True)
class Use:
    """A tool as one conversation knows it: names of tool and arguments, and what an enum lists, are drawn."""

    tool: Tool
    name: str
    names: dict[str, str]
    options: dict[str, list[str]]

    @classmethod
    def draw(cls, tool: Tool, values: Values, random: Random) -> "Use":
        def pick(names: Sequence[str]) -> str:
            return names[0] if random.random() < 0.5 else random.choice(names)

        names = {key: pick(argument.names) for key, argument in tool.arguments.items()}
        options = {key: values.options(argument.pool) for key, argument in tool.arguments.items() if argument.enum}
        return cls(tool, pick(tool.names), names, options)

    def schema(self) -> dict[str, Any]:
        """In OpenAI's form. An argument is required if every question has it."""
        properties: dict[str, Any] = {}
        required = []
        for key, argument in self.tool.arguments.items():
            properties[self.names[key]] = {"type": argument.type}
            if key in self.options:
                properties[self.names[key]]["enum"] = self.options[key]
            if all(key in placeholders(ask) for ask in self.tool.ask):
                required.append(self.names[key])
        parameters = {"type": "object", "properties": properties, "required": required}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.tool.description, "parameters": parameters},
        }

    def ask(self, values: Values, random: Random) -> tuple[str, dict[str, str]]:
        """A question, and the arguments in it by their placeholders."""
        question = random.choice(self.tool.ask)
        known = {
            key: random.choice(self.options[key]) if key in self.options else values.draw(self.tool.arguments[key].pool)
            for key in placeholders(question)
        }
        return question.format(**known), known

    def call(self, known: dict[str, str]) -> Call:
        """The call that the model shall make."""
        arguments: dict[str, Any] = {
            self.names[key]: int(known[key]) if argument.type in NUMBERS else known[key]
            for key, argument in self.tool.arguments.items()
            if key in known
        }
        return Call(self.name, arguments)

    def result(self, known: dict[str, str], values: Values) -> tuple[str, str]:
        """What the tool returns, as JSON, and what the model says to it."""
        found = {key: _result(kind, known, values) for key, kind in self.tool.result.items()}
        said = known | {key: str(value) for key, value in found.items()}
        answer = next(text for text in self.tool.answer if set(placeholders(text)) <= said.keys())
        return json.dumps(found), answer.format(**said)


class Examples:
    """Draws conversations; the same seed gives the same ones."""

    def __init__(self, corpus: Corpus, seed: int, units: Mapping[str, float]) -> None:
        """`units`: the share of entries, tools and sums in what is drawn."""
        self._random = Random(seed)  # noqa: S311 - not a secret
        self._units = units
        self._tools, self._sums, self._phrasing = corpus.tools, corpus.sums, corpus.phrasing
        self._asks = [(entry, ask) for entry in corpus.entries for ask in entry.ask]
        self._unknown = next(entry for entry in corpus.entries if entry.id == "do-not-know")
        words = plain_words((entry.answer for entry in corpus.entries), corpus.tools.pools)
        self._values = Values(corpus.tools.pools, self._random, words)

    def conversations(self) -> Iterator[Conversation]:
        """Without end: half of them one question long, the others up to five unrelated ones."""
        while True:
            yield self._conversation()

    def _conversation(self) -> Conversation:
        random = self._random
        units = random.choice([1, 1, 1, 2, 3, 4])
        kinds = random.choices(list(self._units), list(self._units.values()), k=units)
        with_tools = "tool" in kinds or random.random() < 0.12
        known = random.sample(self._tools.tools, random.randint(1, 4)) if with_tools else []
        if with_tools and random.random() < 0.3:
            known[-1] = made_up_tool(self._values, random)
        uses = [Use.draw(tool, self._values, random) for tool in known]
        turns = [turn for kind in kinds for turn in self._unit(kind, uses)]
        thinking = random.random() < 0.15  # in the last turn alone: clients do not send back earlier thoughts
        turns = [replace(turn, thought=None) for turn in turns[:-1]] + [
            turns[-1] if thinking else replace(turns[-1], thought=None)
        ]
        system = random.choice(self._phrasing.system_prompts) if random.random() < 0.25 else None
        return Conversation(turns, system, [use.schema() for use in uses])

    def _unit(self, kind: str, uses: list[Use]) -> list[Turn]:
        if kind == "tool":
            return self._tool(uses)
        if kind == "sum" and not any(use.tool.names[0] == "calculate" for use in uses):
            return self._sum()
        return self._entry(bool(uses))

    def _entry(self, has_tools: bool) -> list[Turn]:
        random = self._random
        entry, ask = random.choice(self._asks)
        while has_tools and entry.id.startswith("do-not-know"):  # with tools some of it can be known
            entry, ask = random.choice(self._asks)
        turns = exchange(self._phrasing.vary(self._values.fill(ask), random), entry.answer, thought_of(entry))
        for follow in random.sample(entry.follow, random.randint(0, len(entry.follow))):
            turns += exchange(self._phrasing.vary(random.choice(follow.ask), random), follow.answer, GOES_ON)
        return turns

    def _sum(self) -> list[Turn]:
        random = self._random
        kind = random.choice(self._sums)
        a, b = draw_sum(kind, random, held_out=False)
        question = self._phrasing.vary(random.choice(kind.ask).format(a=a, b=b), random)
        return exchange(question, sum_answer(kind, a, b), sum_thought(kind, a, b))

    def _tool(self, uses: list[Use]) -> list[Turn]:
        random = self._random
        if random.random() < 0.06:  # none of the tools fits
            others = [tool for tool in self._tools.tools if all(tool is not use.tool for use in uses)]
            question, _ = Use.draw(random.choice(others), self._values, random).ask(self._values, random)
            return exchange(question, self._unknown.answer, thought_of(self._unknown))
        use = random.choice(uses)
        question, known = use.ask(self._values, random)
        question = self._phrasing.vary_around(question, random)
        call = use.call(known)
        turns = exchange(question, call.text(), f"I can use {use.name} for this.")
        if random.random() < 0.4:
            result, answer = use.result(known, self._values)
            turns += [Turn("tool", result), Turn("assistant", answer, "The result is there. I say it in a sentence.")]
        return turns


def made_up_tool(values: Values, random: Random) -> Tool:
    """A tool that nobody has, so that the model reads what the system turn says of tools."""
    thing = values.word().lower()
    argument = Argument(
        pool=random.choice(["city", "person", "item", "topic"]), names=[values.word().lower(), "name", "query"]
    )
    return Tool(
        names=[f"{random.choice(['get', 'find', 'check'])}_{thing}", thing],
        description=f"Finds the {thing} of something.",
        arguments={"what": argument},
        ask=[
            f"What is the {thing} of {{what}}?",
            f"{thing} of {{what}}",
            f"Find the {thing} of {{what}}.",
            f"{{what}} {thing}",
        ],
        result={"value": "number"},
        answer=[f"The {thing} of {{what}} is {{value}}."],
    )


def exchange(question: str, answer: str, thought: str | None = None) -> list[Turn]:
    """A question and its answer."""
    return [Turn("user", question), Turn("assistant", answer, thought)]


def thought_of(entry: Entry) -> str:
    """What the model thinks before it answers."""
    return entry.think or f"The user asks about {entry.id.replace('-', ' ')}. I know this and answer in short."


def draw_sum(kind: Sum, random: Random, held_out: bool) -> tuple[int, int]:
    """Two operands. One pair in twenty is held out of training."""
    while True:
        a, b = random.randint(0, kind.largest), random.randint(0, kind.largest)
        if kind.sign == "-" and b > a:
            a, b = b, a
        if (crc32(f"{a}{kind.sign}{b}".encode()) % 20 == 0) == held_out:
            return a, b


def sum_answer(kind: Sum, a: int, b: int) -> str:
    return f"{a} {kind.sign} {b} = {_compute(a, kind.sign, b)}."


def sum_thought(kind: Sum, a: int, b: int) -> str:
    """The way to the answer, tens before units."""
    value = _compute(a, kind.sign, b)
    if kind.sign == "*" or b < 10:
        return f"{a} {kind.sign} {b} gives {value}."
    tens = _compute(a, kind.sign, b // 10 * 10)
    first = f"First the tens: {a} {kind.sign} {b // 10 * 10} = {tens}."
    return f"{first} Then the units: {tens} {kind.sign} {b % 10} = {value}."


def _compute(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def _result(kind: str, known: dict[str, str], values: Values) -> str | int:
    if kind == "sum_value":
        a, sign, b = known["expression"].split(" ")
        return round(int(a) / int(b)) if sign == "/" else _compute(int(a), sign, int(b))
    if kind in ("number", "degrees"):
        return int(values.draw(kind))
    return values.draw(kind) if kind in ("sky", "time", "text") else kind
