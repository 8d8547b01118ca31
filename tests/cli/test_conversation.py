"""History and figures of a chat."""

import pytest

from cli.conversation import Answer, Conversation
from cli.events import Content, Event, Failure, Finish, Reasoning, Role, Usage


def test_body_has_only_what_was_chosen() -> None:
    conversation = Conversation("demo")
    conversation.ask("hi")
    assert conversation.body() == {
        "model": "demo",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_body_with_every_setting_and_history() -> None:
    conversation = Conversation("demo", system="Be brief.", temperature=0.0, max_tokens=7)
    conversation.ask("one")
    conversation.settle("first")
    conversation.ask("two")
    assert conversation.body() == {
        "model": "demo",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "first"},
            {"role": "user", "content": "two"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "max_tokens": 7,
    }


def test_a_question_without_an_answer_is_taken_back() -> None:
    conversation = Conversation("demo")
    conversation.ask("one")
    conversation.settle("")
    assert conversation.turns == []


def test_take_back_forgets_the_last_turn_only_if_it_is_that_one() -> None:
    conversation = Conversation("demo")
    conversation.ask("one")
    conversation.settle("first")
    conversation.take_back("other")
    assert len(conversation.turns) == 2
    conversation.take_back("one")
    assert conversation.turns == []


def answer(*events: tuple[Event, float], interrupted: bool = False) -> Answer:
    result = Answer(asked=10.0, interrupted=interrupted)
    for event, now in events:
        result.note(event, now)
    return result


FIRST, LAST = (Content("a"), 10.25), (Content("b"), 12.25)


@pytest.mark.parametrize(
    ("result", "summary"),
    [
        (
            answer(FIRST, LAST, (Finish("stop"), 12.3), (Usage(5, 101), 12.4)),
            "TTFT 0.25 s · 50.0 tok/s · 101 tokens",
        ),
        (answer((Role("assistant"), 10.1), FIRST, (Usage(5, 1), 11)), "TTFT 0.25 s · 1 token"),
        (answer((Reasoning("r"), 10.5), LAST, (Usage(5, 8), 13)), "TTFT 0.50 s · 4.0 tok/s · 8 tokens"),
        (
            answer(FIRST, LAST, (Finish("length"), 13), (Usage(5, 3), 13)),
            "TTFT 0.25 s · 1.0 tok/s · 3 tokens · stopped at the token limit",
        ),
        (
            answer(FIRST, (Finish("content_filter"), 11), (Usage(1, 1), 11)),
            "TTFT 0.25 s · 1 token · ended by content_filter",
        ),
        (answer(FIRST, LAST, interrupted=True), "TTFT 0.25 s · ~0.5 tok/s · ~2 tokens · interrupted"),
        (answer(interrupted=True), "interrupted"),
        (answer((Failure("gone"), 11)), ""),
        (answer((Finish("stop"), 11), (Usage(5, 0), 11)), ""),
    ],
)
def test_summary(result: Answer, summary: str) -> None:
    assert result.summary() == summary


def test_answer_keeps_content_but_not_reasoning() -> None:
    result = answer((Reasoning("hm"), 11), FIRST, LAST, (Failure("the\x1b[1m\nend."), 12))
    assert result.text == "ab"
    assert result.failure == "the end"
