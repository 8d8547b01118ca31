"""The corpus as it is shipped: its form, and that nothing held out is trained."""

from itertools import islice
from pathlib import Path

import pytest

from serve_app.demo.corpus import read_entries
from serve_app.demo.examples import Corpus, Examples, read_corpus
from serve_app.demo.template import Conversation
from serve_app.demo.train import MAIN_UNITS

ENTRY = "- {{id: {id}, ask: [{ask}], answer: {answer}}}\n"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_corpus()


def drawn(corpus: Corpus, seed: int) -> list[Conversation]:
    return list(islice(Examples(corpus, seed, MAIN_UNITS).conversations(), 2000))


def plain(question: str) -> str:
    return question.casefold().rstrip("?.! ")


def test_every_entry_can_be_held_against_paraphrases(corpus: Corpus) -> None:
    held_out = [ask for entry in corpus.entries for ask in entry.held_out]
    assert len(held_out) >= 100
    trained = {plain(ask) for entry in corpus.entries for ask in entry.ask}
    assert [ask for ask in held_out if plain(ask) in trained] == []


def test_some_answers_are_long_enough_to_watch(corpus: Corpus) -> None:
    assert sum(len(entry.answer.split()) > 150 for entry in corpus.entries) >= 8


def test_there_are_enough_tools(corpus: Corpus) -> None:
    assert len(corpus.tools.tools) >= 6


def test_the_same_seed_draws_the_same_conversations(corpus: Corpus) -> None:
    assert drawn(corpus, 1) == drawn(corpus, 1)
    assert drawn(corpus, 1) != drawn(corpus, 2)


def test_no_word_held_out_is_trained(corpus: Corpus) -> None:
    called = [
        turn.content
        for conversation in drawn(corpus, 1)
        for turn in conversation.turns
        if turn.content.startswith("<tool_call>")
    ]
    assert len(called) > 300
    for pool in ("city", "person", "language", "place"):
        words = [f'"{word}"' for word in corpus.tools.pools[pool].held_out]
        assert [call for call in called if any(word in call for word in words)] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ENTRY.format(id="a", ask="x", answer="y") * 2, "more than one entry has the id a"),
        (
            ENTRY.format(id="a", ask="Hello.", answer="y") + ENTRY.format(id="b", ask="hello", answer="z"),
            "the phrasing hello",
        ),
        ("- {id: a, ask: [x], answer: y, aks: [z]}", "aks"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_entries(tmp_path)
