"""When the outputs of engine steps leave a replica, in which pieces, and what goes with them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats
from vllm.v1.outputs import LogprobsLists

from serve_app.fleet.channel import SinkGone
from serve_app.replica import courier as module
from serve_app.replica.courier import Attempt, Courier

HERE, THERE = "tcp://here", "tcp://there"


class Sender:
    """Keeps what is pushed: for each message its gateway, offsets and outputs, and the figures."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str, list[int], list[EngineCoreOutput]]] = []
        self.figures: list[SchedulerStats | None] = []
        self.gone: set[str] = set()

    def addresses(self) -> Sequence[str]:
        return (HERE, THERE)

    def push(self, address: str, offsets: list[int], outputs: EngineCoreOutputs) -> None:
        if address in self.gone:
            raise SinkGone(address)
        self.pushed.append((address, offsets, outputs.outputs))
        self.figures.append(outputs.scheduler_stats)

    def taken(self) -> list[tuple[str, list[tuple[int, list[int]]]]]:
        """What was pushed since the last call: for each message its gateway, and of its outputs offset and tokens."""
        messages = [
            (address, [(offset, output.new_token_ids) for offset, output in zip(offsets, outputs, strict=True)])
            for address, offsets, outputs in self.pushed
        ]
        self.pushed = []
        return messages


class Bench:
    """A courier with so many requests of one gateway, of which each computes a token a step."""

    def __init__(self, requests: int, busy_from: int = 2) -> None:
        self.sender = Sender()
        self.courier = Courier(self.sender, busy_from)  # type: ignore[arg-type]
        for number in range(requests):
            self.courier.attempts[f"r{number}"] = Attempt(HERE)
        self.step = 0

    def push(self, *outputs: EngineCoreOutput, stats: SchedulerStats | None = None) -> None:
        """One step, with these outputs in place of the usual ones of their requests."""
        self.step += 1
        told = {output.request_id: output for output in outputs}
        usual = {name: EngineCoreOutput(name, [self.step]) for name in self.courier.attempts}
        self.courier.push(EngineCoreOutputs(outputs=list({**usual, **told}.values()), scheduler_stats=stats))


async def test_a_replica_with_little_to_do_holds_nothing_back() -> None:
    bench = Bench(1)
    for _ in range(3):
        bench.push()
    assert bench.sender.taken() == [(HERE, [(0, [1])]), (HERE, [(1, [2])]), (HERE, [(2, [3])])]


@pytest.mark.parametrize(("requests", "tokens"), [(1, 1), (2, 2), (5, 3), (14, 8), (100, 8)])
async def test_a_busy_one_sends_tokens_in_groups_after_the_first(requests: int, tokens: int) -> None:
    bench = Bench(requests)
    bench.push()
    assert bench.sender.taken() == [(HERE, [(0, [1])] * requests)]
    for _ in range(tokens - 1):
        bench.push()
        assert bench.sender.taken() == []
    bench.push()
    assert bench.sender.taken() == [(HERE, [(1, [*range(2, tokens + 2)])] * requests)]


async def test_no_token_waits_long_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BACK_S", 0.001)
    bench = Bench(20)
    bench.push()
    bench.push()
    bench.sender.taken()
    async with asyncio.timeout(10):
        while not bench.sender.pushed:  # noqa: ASYNC110 - what changes has no event
            await asyncio.sleep(0)
    assert bench.sender.taken() == [(HERE, [(1, [2])] * 20)]


async def test_the_last_token_takes_along_those_that_are_held_and_ends_the_request() -> None:
    bench = Bench(20)
    bench.push()
    bench.push()
    bench.sender.taken()
    ending = bench.courier.attempts["r7"]
    bench.push(EngineCoreOutput("r7", [3], finish_reason=FinishReason.STOP, stop_reason=99))
    ((_, _, (output,)),) = bench.sender.pushed
    assert (output.new_token_ids, output.finish_reason, output.stop_reason) == ([2, 3], FinishReason.STOP, 99)
    assert ending.done.done()
    assert not bench.courier.attempts["r8"].done.done()


async def test_an_output_with_more_than_tokens_leaves_at_once_and_by_itself() -> None:
    bench = Bench(20)
    bench.push()
    bench.push()
    bench.sender.taken()
    logprobs: Any = LogprobsLists([[3]], [[-0.5]], [0], None)  # type: ignore[arg-type]
    bench.push(EngineCoreOutput("r7", [3], new_logprobs=logprobs))
    ((_, offsets, outputs),) = bench.sender.pushed
    assert offsets == [1, 2]
    assert [(output.new_token_ids, output.new_logprobs) for output in outputs] == [([2], None), ([3], logprobs)]


async def test_each_token_of_a_request_under_suspicion_leaves_at_once() -> None:
    bench = Bench(20)
    bench.courier.attempts["r7"] = Attempt(HERE, suspected=True)
    for step in range(1, 4):
        bench.push()
        assert (HERE, [(step - 1, [step])]) in [(to, outputs[-1:]) for to, outputs in bench.sender.taken()]
    bench.courier.flush()  # as when the engine core has died
    assert bench.sender.taken() == [(HERE, [(1, [2, 3])] * 19)]


async def test_what_is_held_for_a_request_that_was_aborted_is_dropped() -> None:
    bench = Bench(2)
    bench.push()
    del bench.courier.attempts["r0"]
    bench.sender.taken()
    bench.push(EngineCoreOutput("r0", [2]))
    assert bench.sender.taken() == [(HERE, [(1, [2])])]


async def test_only_the_gateway_that_asked_gets_an_output_and_all_get_the_figures() -> None:
    bench = Bench(1)
    bench.courier.attempts["r0"].address = THERE
    bench.push(stats=SchedulerStats(num_running_reqs=1))
    assert bench.sender.taken() == [(HERE, []), (THERE, [(0, [1])])]
    assert bench.courier.stats.num_running_reqs == 1


async def test_figures_that_are_increments_are_told_once_and_at_once() -> None:
    """Gauges may wait, or be replaced by newer ones."""
    bench = Bench(20)
    bench.push()
    bench.push(stats=SchedulerStats(num_running_reqs=20))
    bench.push(stats=SchedulerStats(num_running_reqs=21))
    bench.sender.figures = []
    hits = SchedulerStats(num_running_reqs=22, prefix_cache_stats=PrefixCacheStats(requests=1, queries=9, hits=4))
    bench.push(stats=hits)
    assert bench.sender.figures == [hits, hits]  # both gateways
    while not any(message[2] for message in bench.sender.pushed[2:]):
        bench.push()
    assert bench.sender.figures[2:] == [None]


async def test_a_gateway_that_is_gone_ends_its_requests_and_no_others() -> None:
    bench = Bench(2)
    bench.courier.attempts["r0"].address = THERE
    bench.sender.gone = {THERE}
    bench.push()
    bench.push()
    gone, there = bench.courier.attempts["r0"], bench.courier.attempts["r1"]
    with pytest.raises(SinkGone):
        gone.done.result()
    assert not there.done.done()
