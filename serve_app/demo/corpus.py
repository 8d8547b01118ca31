"""What the demo model is taught, as people write it: the YAML files below configs/demo."""

from collections import Counter
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, TypeAdapter, model_validator

from serve_app.config import DEMO_DIRECTORY
from serve_app.settings import Closed


class Follow(Closed):
    """A question that makes sense only after the answer before it."""

    ask: list[str] = Field(min_length=1)
    """Phrasings."""
    answer: str = Field(min_length=1)
    """What the model says, word for word."""


class Entry(Closed):
    """One thing that the model knows."""

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    """Unique over all files."""
    ask: list[str] = Field(min_length=1)
    """Phrasings that are trained; `{city}` and the like stand for a word of that pool in tools.yaml."""
    held_out: tuple[str, ...] = ()
    """Phrasings that are never trained: the evaluation asks them."""
    answer: str = Field(min_length=1)
    """What the model says, word for word."""
    think: str | None = None
    """What it thinks before, when thinking is on; null: a plain sentence made from the id."""
    follow: tuple[Follow, ...] = ()
    """Further turns."""


class Pool(Closed):
    """Words that may stand in one place of a question."""

    open: bool = False
    """Whether any words can stand there: the evaluation then makes up a third of the values."""
    train: list[str] = Field(min_length=1)
    """Used in training."""
    held_out: list[str] = Field(min_length=1)
    """Used by the evaluation alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if both := set(self.train) & set(self.held_out):
            raise ValueError(f"held_out: {', '.join(sorted(both))} is also in train")
        return self


class Argument(Closed):
    """One argument of a tool."""

    pool: str
    """Where its values come from: a pool, or one of the generated kinds that tools.yaml names."""
    names: list[str] = Field(min_length=1)
    """What the argument may be called; a training example draws one, so that the model reads the schema."""
    type: str = "string"
    """JSON type."""
    enum: bool = False
    """Whether the schema lists the pool's values."""


class Tool(Closed):
    """A tool that the model learns to call."""

    names: list[str] = Field(min_length=1)
    """What the tool may be called."""
    description: str
    """One sentence."""
    arguments: dict[str, Argument]
    """By the placeholder that stands for it in `ask`."""
    ask: list[str] = Field(min_length=1)
    """Questions with `{placeholders}`; an argument without one is left out of the call."""
    result: dict[str, str]
    """What the tool returns: field to pool or to a text with placeholders."""
    answer: list[str] = Field(min_length=1)
    """What the model says to the result, with placeholders of arguments and result; the first that can be filled."""


class Sum(Closed):
    """One kind of arithmetic."""

    sign: str
    """As Python writes the operation: + - *."""
    largest: int
    """Largest operand."""
    ask: list[str] = Field(min_length=1)
    """Questions with `{a}` and `{b}`."""


class Tools(Closed):
    """The content of tools.yaml."""

    pools: dict[str, Pool]
    tools: list[Tool]


def read_entries(folder: Path = DEMO_DIRECTORY / "corpus") -> list[Entry]:
    """All entries, by file name and place.

    Raises:
        ValueError: two entries have one id, or a phrasing has two answers; pydantic's error for a wrong field.
    """
    adapter = TypeAdapter(list[Entry])
    entries = [entry for file in sorted(folder.glob("*.yaml")) for entry in adapter.validate_python(_load(file))]
    _check_unique("id", Counter(entry.id for entry in entries))
    answers: dict[str, set[str]] = {}
    for entry in entries:
        for ask in [*entry.ask, *entry.held_out]:
            answers.setdefault(ask.casefold().rstrip("?.! "), set()).add(entry.answer)
    _check_unique("phrasing", Counter({ask: len(given) for ask, given in answers.items()}))
    return entries


def read_tools(file: Path = DEMO_DIRECTORY / "tools.yaml") -> Tools:
    """The tools, and the pools of words.

    Raises:
        ValueError: pydantic's error for a wrong field.
    """
    return Tools.model_validate(_load(file))


def read_sums(file: Path = DEMO_DIRECTORY / "arithmetic.yaml") -> list[Sum]:
    """The kinds of arithmetic.

    Raises:
        ValueError: pydantic's error for a wrong field.
    """
    return TypeAdapter(list[Sum]).validate_python(_load(file))


def _load(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def _check_unique(what: str, counts: Counter[str]) -> None:
    if repeated := sorted(value for value, count in counts.items() if count > 1):
        raise ValueError(f"corpus: more than one entry has the {what} {'; '.join(repeated)}")
