"""The reader times a stream by the frames in it, however the bytes are cut."""

import pytest

from loadtests.sse import Answer, AnswerReader
from tests.unit.loadtests.sse_server import DONE, GOOD, frame, text, usage


def read(*pieces: tuple[bytes, float]) -> Answer:
    reader = AnswerReader(started=10.0)
    reader.headers(10.5)
    for data, now in pieces:
        reader.feed(data, now)
    return reader.answer(20.0)


def test_ttft_is_the_first_frame_with_text_not_the_role_frame() -> None:
    answer = read((text(""), 11), (text("a"), 12), (text("b"), 14), (text("", "stop") + usage(3) + DONE, 17))
    assert answer == Answer(seconds=10, ttfb=0.5, ttft=2, gaps=(2, 3), tokens=3, text="ab", prompt_tokens=3)


def test_frames_that_arrive_together_are_one_arrival() -> None:
    answer = read((text("a") + text("b"), 11), (text("c") + text("d"), 13), (text("e", "stop") + DONE, 14))
    assert (answer.ttft, answer.gaps) == (1, (2, 1))


def test_reasoning_counts_as_text() -> None:
    thought = frame(choices=[{"delta": {"reasoning": "hm"}, "finish_reason": "stop"}])
    assert read((thought, 11), (DONE, 12)).ttft == 1


def test_any_cut_of_the_bytes_gives_the_same_counts() -> None:
    whole = b"".join([b": keep-alive\n\n", *GOOD]).replace(b"\n\n", b"\r\n\r\n")
    for size in range(1, len(whole)):
        answer = read(*((whole[at : at + size], 11.0) for at in range(0, len(whole), size)))
        assert (answer.tokens, answer.ttft, answer.gaps, answer.error) == (2, 1.0, (), None)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([text("a", "stop")], "the stream ended without [DONE]"),
        ([text("a"), DONE], "no finish_reason"),
        ([text("a"), frame(error={"message": "engine died"}), DONE], "error frame: engine died"),
        ([b"data: <html>\n\n"], "error frame: not a chat completion frame: b'<html>'"),
    ],
)
def test_an_answer_that_did_not_end_well_is_an_error(pieces: list[bytes], error: str) -> None:
    assert read(*((piece, 11.0) for piece in pieces)).error == error


@pytest.mark.parametrize(
    ("pieces", "wait"),
    [
        ([(text("a"), 11), (text("b"), 15), (text("c", "stop") + DONE, 18)], 4),
        ([(text("a"), 14), (text("b"), 15), (text("c", "stop") + DONE, 16)], 4),
        ([(text("a"), 11), (text("b"), 12)], 8),
        ([(text(""), 11)], 10),
    ],
    ids=["between two frames", "before the first text", "after the last frame", "no text at all"],
)
def test_the_worst_wait(pieces: list[tuple[bytes, float]], wait: float) -> None:
    assert read(*pieces).worst_wait == wait
