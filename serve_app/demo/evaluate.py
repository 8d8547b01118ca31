"""Asks the demo model what it was and was not trained on: `python -m serve_app.demo.evaluate`."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from typer import Option

from serve_app.config import DEMO_MODEL
from serve_app.demo.corpus import Entry, Sum, Tools
from serve_app.demo.decode import answers
from serve_app.demo.examples import Corpus, Use, draw_sum, exchange, read_corpus, sum_answer
from serve_app.demo.folder import read_model
from serve_app.demo.llama import Llama
from serve_app.demo.template import Conversation, Turn
from serve_app.demo.values import Values

SEED = 7
CALL = re.compile(r"<tool_call>\n(.*)\n</tool_call>", re.DOTALL)
THOUGHT = re.compile(r"<think>\n.+?\n</think>\n\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation that ends with a question, and what the answer must be."""

    prompt: Conversation
    expected: str
    think: bool = False


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases of one kind. `bar`: the share that must be right, null where none is promised."""

    name: str
    cases: list[Case]
    bar: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A suite's figures, and its wrong answers as question, expected, given."""

    suite: Suite
    wrong: list[tuple[str, str, str]]

    @property
    def share(self) -> float:
        return 1 - len(self.wrong) / len(self.suite.cases)

    def missed(self, slack: float = 0.0) -> bool:
        """Whether the share is below the bar by more than `slack`."""
        return self.suite.bar is not None and self.share < self.suite.bar - slack

    def row(self) -> tuple[str, str, str, str]:
        bar = f"{self.suite.bar:.0%}" if self.suite.bar is not None else ""
        right = len(self.suite.cases) - len(self.wrong)
        return (
            self.suite.name,
            str(len(self.suite.cases)),
            str(right),
            f"{self.share:.1%}" + (f" (bar {bar})" if bar else ""),
        )


def suites(corpus: Corpus) -> list[Suite]:
    """Every suite; the same cases each time."""
    random = Random(SEED)  # noqa: S311 - not a secret
    entries, tools, sums = corpus.entries, corpus.tools, corpus.sums
    values, seen = Values(tools.pools, random, held_out=True), Values(tools.pools, random)
    again = [(ask, entry) for entry in entries for ask in entry.held_out[:1]]
    calls = [_call(use, values, random, tools) for use in _uses(tools, values, random, 30)]
    results = [_result(use, values, random, tools) for use in _uses(tools, values, random, 10)]
    return [
        Suite("corpus questions, word for word", [_case(seen.fill(ask), e) for e in entries for ask in e.ask], 0.95),
        Suite("corpus follow-ups, word for word", [case for entry in entries for case in _follows(entry)], 0.95),
        Suite("held-out paraphrases", [_case(ask, e) for e in entries for ask in e.held_out], 0.70),
        Suite("paraphrases as a second question", [_second(ask, e, entries[0]) for ask, e in again]),
        Suite("paraphrases with thinking on", [_case(ask, e, think=True) for ask, e in again]),
        Suite("tool calls, unseen arguments", calls, 0.80),
        Suite("answers to tool results", results),
        Suite("sums of unseen numbers", [_sum(kind, random) for kind in sums for _ in range(60)]),
        Suite("sums with thinking on", [_sum(kind, random, think=True) for kind in sums for _ in range(30)]),
    ]


def evaluate(model: Llama, tokenizer: Tokenizer, asked: Sequence[Suite]) -> list[Outcome]:
    """The outcome of each suite, greedy."""
    return [Outcome(suite, _wrong(model, tokenizer, suite.cases)) for suite in asked]


def table(outcomes: Sequence[Outcome]) -> Table:
    """For the terminal."""
    shown = Table(title="Demo model, greedy answers", title_justify="left")
    for heading in ("asked", "cases", "right", "share"):
        shown.add_column(heading, justify="left" if heading == "asked" else "right")
    for outcome in outcomes:
        shown.add_row(*outcome.row())
    return shown


def main(
    *,
    model: Annotated[Path, Option(help="Model directory.")] = DEMO_MODEL,
    only: Annotated[str, Option(help="Only suites whose name contains this.")] = "",
    sample: Annotated[int, Option(min=1, help="Ask only every n-th case of each suite.")] = 1,
    show: Annotated[int, Option(min=0, help="Wrong answers to print, of each suite.")] = 0,
    threads: Annotated[int, Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Prints how many answers are right; exits with 1 if a bar is missed."""
    console = Console(highlight=False)
    torch.set_num_threads(threads)
    llama, tokenizer = read_model(model)
    asked = [
        Suite(suite.name, suite.cases[::sample], suite.bar) for suite in suites(read_corpus()) if only in suite.name
    ]
    outcomes = evaluate(llama, tokenizer, asked)
    for outcome in outcomes:
        for question, expected, given in outcome.wrong[:show]:
            console.print(f"{outcome.suite.name}\n  Q {question!r}\n  + {expected!r}\n  - {given!r}", markup=False)
    console.print(table(outcomes))
    if any(outcome.missed() for outcome in outcomes):
        raise typer.Exit(1)


def _wrong(model: Llama, tokenizer: Tokenizer, cases: Sequence[Case]) -> list[tuple[str, str, str]]:
    wrong = []
    for think in (False, True):
        group = sorted((case for case in cases if case.think is think), key=lambda case: len(case.expected))
        given = answers(model, tokenizer, [case.prompt for case in group], think)
        for case, answer in zip(group, given, strict=True):
            said = THOUGHT.sub("", answer, count=1) if think else answer
            if _meaning(said) != _meaning(case.expected) or (think and said == answer):
                wrong.append((case.prompt.turns[-1].content, case.expected, answer))
    return wrong


def _meaning(answer: str) -> object:
    """A tool call as parsed, any other answer as it is."""
    if found := CALL.fullmatch(answer):
        try:
            return json.loads(found[1])
        except ValueError:
            return answer
    return answer


def _case(question: str, entry: Entry, think: bool = False) -> Case:
    return Case(Conversation([Turn("user", question)]), entry.answer, think)


def _follows(entry: Entry) -> list[Case]:
    before = exchange(entry.ask[0], entry.answer)
    return [
        Case(Conversation([*before, Turn("user", ask)]), follow.answer) for follow in entry.follow for ask in follow.ask
    ]


def _second(question: str, entry: Entry, first: Entry) -> Case:
    return Case(Conversation([*exchange(first.ask[0], first.answer), Turn("user", question)]), entry.answer)


def _uses(tools: Tools, values: Values, random: Random, each: int) -> list[Use]:
    return [Use.draw(tool, values, random) for tool in tools.tools for _ in range(each)]


def _asked(use: Use, values: Values, random: Random, tools: Tools) -> tuple[Conversation, dict[str, str]]:
    """A question for the tool, with up to three other tools beside it."""
    others = random.sample([tool for tool in tools.tools if tool is not use.tool], random.randint(0, 3))
    listed = [use, *(Use.draw(tool, values, random) for tool in others)]
    random.shuffle(listed)
    question, known = use.ask(values, random)
    return Conversation([Turn("user", question)], tools=[one.schema() for one in listed]), known


def _call(use: Use, values: Values, random: Random, tools: Tools) -> Case:
    conversation, known = _asked(use, values, random, tools)
    return Case(conversation, use.call(known).text())


def _result(use: Use, values: Values, random: Random, tools: Tools) -> Case:
    conversation, known = _asked(use, values, random, tools)
    result, answer = use.result(known, values)
    turns = [*conversation.turns, Turn("assistant", use.call(known).text()), Turn("tool", result)]
    return Case(Conversation(turns, tools=conversation.tools), answer)


def _sum(kind: Sum, random: Random, think: bool = False) -> Case:
    a, b = draw_sum(kind, random, held_out=True)
    question = random.choice(kind.ask).format(a=a, b=b)
    return Case(Conversation([Turn("user", question)]), sum_answer(kind, a, b), think)


if __name__ == "__main__":
    typer.run(main)
