"""Verdicts on requests, and how several gateways share them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from ray.exceptions import ActorDiedError

from serve_app.fleet import quarantine_board
from serve_app.fleet.quarantine import Finding, Quarantine, Verdict
from serve_app.fleet.quarantine_board import QuarantineBoard, share
from serve_app.fleet.suspicion import digest_of
from tests.unit.fleet.bed import until
from tests.unit.fleet.requests import request

POISON, OTHER = b"poison", b"other"
SUSPECTED, REFUSED, CLEARED = Verdict.SUSPECTED, Verdict.REFUSED, Verdict.CLEARED


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_verdict_stands_for_its_time() -> None:
    clock = Clock()
    quarantine = Quarantine(600, clock)
    quarantine.find(POISON, REFUSED)
    clock.now = 599
    assert (quarantine.verdict(POISON), quarantine.verdict(OTHER), len(quarantine)) == (REFUSED, CLEARED, 1)
    clock.now = 600
    assert (quarantine.verdict(POISON), len(quarantine)) == (CLEARED, 0)


def test_a_suspect_is_cleared_and_one_that_is_refused_is_not() -> None:
    quarantine = Quarantine(600)
    for digest, verdict in ((OTHER, SUSPECTED), (OTHER, CLEARED), (POISON, REFUSED), (POISON, CLEARED)):
        quarantine.find(digest, verdict)
    quarantine.find(POISON, SUSPECTED)
    assert (quarantine.verdict(OTHER), quarantine.verdict(POISON)) == (CLEARED, REFUSED)


async def test_of_requests_that_are_alike_one_is_tried_at_a_time_until_there_is_a_verdict() -> None:
    quarantine, log = Quarantine(600), list[str]()
    answered = asyncio.Event()

    async def try_out(name: str, digest: bytes) -> None:
        async with quarantine.turn(digest):
            log.append(name)
            await answered.wait()

    tasks = [asyncio.create_task(try_out(*each)) for each in (("a", POISON), ("b", POISON), ("c", OTHER))]
    await asyncio.sleep(0.01)
    assert log == ["a", "c"]
    quarantine.find(POISON, SUSPECTED)
    await asyncio.sleep(0.01)
    assert log == ["a", "c"]
    quarantine.find(POISON, CLEARED)  # `a` has given a token and goes on
    await asyncio.sleep(0.01)
    assert log == ["a", "c", "b"]
    answered.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    "other",
    [
        request("r", [10, 11]),
        request("r", max_tokens=9),
        request("r", stop_token_ids=[7]),
        request("r", logit_bias={5: 1.0}),
    ],
)
def test_the_digest_tells_what_is_asked(other: Any) -> None:
    assert digest_of("m", other) != digest_of("m", request())


def test_the_digest_is_the_same_whoever_asks_and_however_it_is_answered() -> None:
    mine, theirs = request("mine"), request("theirs", seed=5)
    theirs.cache_salt, theirs.arrival_time, theirs.priority = "salt", 5.0, 3
    assert theirs.sampling_params is not None
    theirs.sampling_params.output_kind = type(theirs.sampling_params.output_kind).FINAL_ONLY
    assert digest_of("m", mine) == digest_of("m", theirs)
    assert digest_of("m", mine) != digest_of("another", mine)
    assert theirs.sampling_params.seed == 5


class Gateways:
    """Quarantines that share a board, which may be away."""

    def __init__(self) -> None:
        self.board: QuarantineBoard | None = QuarantineBoard()
        self.failure: Exception = ActorDiedError()
        self.quarantines = [Quarantine(600), Quarantine(600)]
        self.tasks = [asyncio.create_task(share(each, self._call)) for each in self.quarantines]

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self.board is None:
            raise self.failure
        return await getattr(self.board, method)(*arguments)

    async def until(self, number: int, digest: bytes, verdict: Verdict) -> None:
        await until(lambda: self.quarantines[number].verdict(digest) is verdict, f"{verdict} at gateway {number}")


@pytest.fixture
async def gateways(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateways]:
    monkeypatch.setattr(quarantine_board, "listen_on_node_address", lambda: None)
    monkeypatch.setattr(quarantine_board, "RETRY_S", 0.01)
    gateways = Gateways()
    yield gateways
    for task in gateways.tasks:
        task.cancel()
    await asyncio.wait(gateways.tasks)


async def test_gateways_share_their_verdicts(gateways: Gateways) -> None:
    one, other = gateways.quarantines
    one.find(POISON, SUSPECTED)
    await gateways.until(1, POISON, SUSPECTED)
    other.find(POISON, REFUSED)
    await gateways.until(0, POISON, REFUSED)
    one.find(OTHER, SUSPECTED)
    await gateways.until(1, OTHER, SUSPECTED)
    one.find(OTHER, CLEARED)
    await gateways.until(1, OTHER, CLEARED)


BROKEN = grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata())


@pytest.mark.parametrize("failure", [ActorDiedError(), BROKEN], ids=lambda failure: type(failure).__name__)
async def test_what_a_board_lost_is_written_again(gateways: Gateways, failure: Exception) -> None:
    gateways.failure = failure
    gateways.quarantines[0].find(POISON, REFUSED)
    await gateways.until(1, POISON, REFUSED)
    gateways.board = None
    gateways.quarantines[1].find(OTHER, REFUSED)
    await asyncio.sleep(0.05)
    gateways.board = QuarantineBoard()
    await gateways.until(0, OTHER, REFUSED)
    newcomer = Quarantine(600)
    task = asyncio.create_task(share(newcomer, gateways._call))
    gateways.quarantines.append(newcomer)
    await gateways.until(2, OTHER, REFUSED)
    await gateways.until(2, POISON, REFUSED)
    task.cancel()


async def test_a_late_reader_hears_of_what_still_stands_and_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine_board, "listen_on_node_address", lambda: None)
    clock = Clock()
    board = QuarantineBoard(clock)
    await board.write([Finding(POISON, REFUSED, 600)])
    clock.now = 500
    await board.write([Finding(OTHER, SUSPECTED, 600)])
    page = await board.read("", 0)
    assert page.findings == [Finding(POISON, REFUSED, 100), Finding(OTHER, SUSPECTED, 600)]
    clock.now = 600
    assert (await board.read("", 0)).findings == [Finding(OTHER, SUSPECTED, 500)]
    await board.write([Finding(POISON, REFUSED, 600)])
    assert (await board.read(page.board, page.position)).findings == [Finding(POISON, REFUSED, 600)]
