"""The journal: what another replica is sent, and what is written down of what replicas send."""

import pytest
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.metrics.stats import PrefillStats

from serve_app.fleet.journal import Journal, TokensLost
from tests.unit.fleet.requests import PROMPT, request


def output(attempt: str, tokens: list[int], finish: FinishReason | None = None) -> EngineCoreOutput:
    return EngineCoreOutput(attempt, tokens, finish_reason=finish)


async def test_the_first_attempt_sends_the_request_as_it_came() -> None:
    entry = Journal().open(request(min_tokens=3))
    sent = entry.attempt_request()
    assert sent.request_id == "r~0"
    assert sent.prompt_token_ids == PROMPT
    assert sent.sampling_params == entry.request.sampling_params


async def test_tokens_of_an_attempt_that_was_given_up_are_dropped() -> None:
    journal = Journal()
    entry = journal.open(request())
    entry.next_attempt()
    assert journal.entry_of(output("r~0", [20])) is None
    assert journal.entry_of(output("r~1", [20])) is entry
    assert journal.entry_of(output("other~1", [20])) is None


async def test_offsets_continue_within_an_attempt() -> None:
    journal = Journal()
    entry = journal.open(request())
    journal.record(entry, output("r~0", [20, 21]), offset=0)
    entry.next_attempt()
    journal.record(entry, output("r~1", [22]), offset=0)
    journal.record(entry, output("r~1", [23]), offset=1)
    assert entry.tokens == [20, 21, 22, 23]


@pytest.mark.parametrize("offset", [1, 3])
async def test_a_gap_or_a_repetition_is_noticed_and_nothing_written(offset: int) -> None:
    journal = Journal()
    entry = journal.open(request())
    journal.record(entry, output("r~0", [20, 21]), offset=0)
    with pytest.raises(TokensLost):
        journal.record(entry, output("r~0", [22]), offset=offset)
    assert entry.tokens == [20, 21]


async def test_a_finished_request_leaves_the_journal() -> None:
    journal = Journal()
    entry = journal.open(request())
    journal.record(entry, output("r~0", [20], FinishReason.LENGTH), offset=0)
    assert (len(journal), entry.finished.is_set(), journal.holds(entry)) == (0, True, False)


async def test_waiting_counts_requests_without_a_token() -> None:
    journal = Journal()
    first, _ = journal.open(request("a")), journal.open(request("b"))
    assert journal.waiting() == 2
    journal.record(first, output("a~0", [20]), offset=0)
    assert journal.waiting() == 1


def prefilled(attempt: str, token: int, prompt: int, cached: int) -> EngineCoreOutput:
    """The first output of an attempt."""
    stats = PrefillStats()
    stats.set(prompt, cached, 0)
    return EngineCoreOutput(attempt, [token], prefill_stats=stats)


async def test_cached_tokens_are_those_of_the_attempt_that_began_the_answer() -> None:
    journal = Journal()
    entry = journal.open(request())
    entry.next_attempt()
    first, resumed = prefilled("r~1", 20, len(PROMPT), 2), prefilled("r~2", 21, len(PROMPT) + 1, 3)
    journal.record(entry, first, offset=0)
    entry.next_attempt()
    journal.record(entry, resumed, offset=0)
    assert (entry.cached_tokens, first.prefill_stats is None, resumed.prefill_stats) == (2, False, None)
    entry.forget()
    entry.next_attempt()
    journal.record(entry, prefilled("r~3", 20, len(PROMPT), 1), offset=0)
    assert (entry.cached_tokens, entry.tokens) == (1, [20])


async def test_the_replicas_that_worked_on_a_request_are_counted() -> None:
    entry = Journal().open(request())
    entry.begin()
    entry.begin()  # no replica had taken it
    entry.next_attempt()
    assert (entry.replicas, entry.held) == (1, True)
    entry.next_attempt()  # it never got to an engine core
    entry.begin()
    assert (entry.replicas, entry.held) == (2, False)


@pytest.mark.parametrize(("moves", "told"), [(0, 1), (1, 0)])
async def test_how_long_the_first_token_took_is_told_only_of_a_request_that_did_not_move(moves: int, told: int) -> None:
    """Or a model that was away would seem slow, and refuse clients that cannot wait so long."""
    journal, calls = Journal(), list[int]()
    entry = journal.open(request())
    entry.on_first_token = lambda: calls.append(1)
    for _ in range(moves):
        entry.next_attempt()
    for offset in range(3):
        journal.record(entry, output(f"r~{moves}", [20]), offset)
    assert len(calls) == told
