"""The bytes of a stream become the same events, wherever the network cuts them."""

import json

import pytest

from cli.events import (
    Content,
    Done,
    Event,
    EventReader,
    Failure,
    Finish,
    FrameReader,
    Reasoning,
    Role,
    ToolCall,
    Usage,
)
from tests.cli.service import delta, ending, frame

CUT_OFF = Failure("the connection ended before the answer did")
UNREADABLE = Failure("the service sent a frame that is no chat completion chunk")


def read(*chunks: bytes) -> list[Event]:
    reader = EventReader()
    return [*(event for chunk in chunks for event in reader.feed(chunk)), *reader.close()]


CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"q'}}
REST = {"index": 0, "function": {"arguments": '":1}'}}
ANSWER = (
    b": connected\n\n"
    + delta(role="assistant", content="")
    + delta(reasoning="Gr\u00fc\u00dfe? ")
    + delta(reasoning_content="Ja.")
    + b": keep-alive\r\n\r\n"
    + b"event: chunk\r\nid: 7\r\n"
    + 'data: {"choices":[{"delta":{"content":"\u4f60\u597d \U0001f30d"}}]}\r\n\r\n'.encode()
    + b'data: {"choices":\ndata: [{"delta":{"content":"two lines"}}]}\n\n'
    + b'data:{"choices":[{"delta":{"content":"old mac"}}]}\r\r'
    + delta(tool_calls=[CALL])
    + delta(tool_calls=[REST])
    + b"retry: 10\n\n"
    + ending(9)
    + frame({"after": "the end"})
)
EVENTS = [
    Role("assistant"),
    Reasoning("Gr\u00fc\u00dfe? "),
    Reasoning("Ja."),
    Content("\u4f60\u597d \U0001f30d"),
    Content("two lines"),
    Content("old mac"),
    ToolCall(0, "look_up", '{"q'),
    ToolCall(0, "", '":1}'),
    Finish("stop"),
    Usage(5, 9),
    Done(),
]


def test_a_whole_answer() -> None:
    assert read(ANSWER) == EVENTS


def test_cut_at_every_byte() -> None:
    for cut in range(len(ANSWER) + 1):
        assert read(ANSWER[:cut], ANSWER[cut:]) == EVENTS, cut


def test_cut_into_pieces_of_every_size() -> None:
    for size in range(1, 40):
        pieces = [ANSWER[start : start + size] for start in range(0, len(ANSWER), size)]
        assert read(*pieces) == EVENTS, size


def test_a_stream_cut_off_anywhere_ends_with_one_failure() -> None:
    """Before the finish reason, every prefix is an unfinished answer; no event is made up or lost."""
    until_finish = ANSWER.index(b'"finish_reason": "stop"')
    for end in range(until_finish):
        *events, last = read(ANSWER[:end])
        assert last in {CUT_OFF, UNREADABLE}, end
        assert events == EVENTS[: len(events)], end


def test_without_done_the_finish_reason_counts() -> None:
    assert read(delta(content="a") + delta("stop")) == [Content("a"), Finish("stop"), Done()]


def test_the_last_event_may_lack_its_blank_line() -> None:
    assert read(delta(content="a") + b"data: [DONE]") == [Content("a"), Done()]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (
            {"error": {"message": "The replica died.", "type": "server_error", "code": 500}},
            "The replica died.",
        ),
        ({"error": {"message": "Over the limit.", "code": "rate_limit"}}, "Over the limit."),
        ({"error": "plain text"}, "plain text"),
        ({"error": {}}, "no reason given"),
    ],
)
def test_an_error_frame_ends_the_answer(payload: object, message: str) -> None:
    stream = delta(content="half") + b"event: error\n" + frame(payload) + delta(content="never") + b"data: [DONE]\n\n"
    assert read(stream) == [Content("half"), Failure(message)]


@pytest.mark.parametrize("data", [b"{", b"[]", b"12", b"<html>", b'{"choices": 3}', b'{"choices":[{"delta":7}]}'])
def test_a_frame_that_is_no_chunk_ends_the_answer(data: bytes) -> None:
    assert read(delta(content="a") + b"data: " + data + b"\n\n") == [Content("a"), UNREADABLE]


def test_other_choices_and_unknown_fields_are_passed_over() -> None:
    second = frame({"choices": [{"index": 1, "delta": {"content": "other"}}], "novel": [1]})
    assert read(second + frame({"queue": 3}) + b"data: [DONE]\n\n") == [Done()]


def test_frames_with_any_line_end() -> None:
    for end in ("\n", "\r", "\r\n"):
        source = f"\ufeffdata: a{end}data:  b{end}{end}:c{end}data{end}data: \u00e9{end}{end}".encode()
        reader = FrameReader()
        frames = [data for byte in source for data in reader.feed(bytes([byte]))]
        assert [*frames, *reader.close()] == ["a\n b", "\n\u00e9"], json.dumps(end)
