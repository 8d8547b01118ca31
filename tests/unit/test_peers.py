"""What a gateway does with replicas that fall silent or leave, in virtual time."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from ray.exceptions import RayError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from serve_app.fleet import peers as peers_module
from serve_app.fleet.budget import MoveBudget
from serve_app.fleet.channel import BEAT_S, Header
from serve_app.fleet.journal import Entry, Journal
from serve_app.fleet.peers import Limits, Peers
from serve_app.fleet.resume import EngineTraits, Move, decide
from tests.virtual_time import now, run


class Serve:
    """Serve's view of replicas, which dies at a kill."""

    def __init__(self, *running: str) -> None:
        self.ids = set(running)
        self.kills: list[tuple[str, float]] = []
        self.looks = 0
        self.fails = 0

    def wake(self) -> None:
        self.looks += 1

    def running(self) -> set[str]:
        return self.ids

    def kill(self, replica: str) -> bool:
        self.kills.append((replica, now()))
        if self.fails:
            self.fails -= 1
            raise RayError
        existed = replica in self.ids
        self.ids.discard(replica)
        return existed


def can_move(entry: Entry) -> bool:
    return decide(entry, EngineTraits(max_model_len=100)) is not Move.FAIL


class Gateway:
    """The part of a fleet client that `Peers` talks to."""

    def __init__(self, serve: Serve, limits: Limits = Limits(2.5, 8)) -> None:  # noqa: B008
        self.journal, self.serve = Journal(), serve
        self.budget = MoveBudget(100, now)
        self.moved: list[tuple[str, float]] = []
        self.lost: list[str] = []
        watched = self.journal, serve, limits, self.budget
        self.peers = Peers(*watched, can_move=can_move, move=self._move, lost=self._lose)
        self._watching = asyncio.create_task(self.peers.run(self._read()))

    async def _read(self) -> None:
        await asyncio.Event().wait()

    def carry(self, replica: str, *requests: str, **params: Any) -> None:
        for name in requests:
            entry = self.journal.open(
                EngineCoreRequest(
                    request_id=name,
                    prompt_token_ids=[1],
                    mm_features=None,
                    sampling_params=SamplingParams(**params),
                    pooling_params=None,
                    arrival_time=0.0,
                    lora_request=None,
                    cache_salt=None,
                    data_parallel_rank=None,
                )
            )
            entry.tokens, entry.read = [7], 1
        self.peers.heard(Header(replica, taken=[f"{name}~0" for name in requests]))

    async def hear(self, seconds: float, *replicas: str, leaving_s: Callable[[], float | None] = lambda: None) -> None:
        """Signs of life of these replicas for so long; the first of them leaves."""
        for _ in range(round(seconds / BEAT_S)):
            await asyncio.sleep(BEAT_S)
            self.peers.heard(Header(replicas[0], leaving_s=leaving_s()))
            for replica in replicas[1:]:
                self.peers.heard(Header(replica))

    def _move(self, entry: Entry) -> None:
        entry.next_attempt()
        self.moved.append((entry.request.request_id, now()))

    def _lose(self, entry: Entry) -> None:
        entry.next_attempt()
        self.lost.append(entry.request.request_id)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocking calls are made in the loop, which knows the time."""

    async def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(peers_module.asyncio, "to_thread", call)


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def in_virtual_time() -> None:
        run(test())

    in_virtual_time.__name__ = test.__name__
    return in_virtual_time


@virtual
async def test_a_silent_replica_is_killed_within_three_seconds_and_its_requests_go_on() -> None:
    gateway = Gateway(Serve("one", "two"))
    gateway.carry("one", "a", "b")
    gateway.carry("two", "c")
    await gateway.hear(5, "two")
    assert (gateway.lost, gateway.moved) == (["a", "b"], [])
    assert [(name, at <= 3) for name, at in gateway.serve.kills] == [("one", True)]


@virtual
async def test_any_message_is_a_sign_of_life() -> None:
    gateway = Gateway(Serve("one"))
    gateway.carry("one", "a")
    await gateway.hear(60, "one")
    assert (gateway.lost, gateway.serve.kills) == ([], [])


@virtual
async def test_a_request_that_waited_for_a_replica_has_its_time_from_when_it_has_one() -> None:
    gateway = Gateway(Serve("one"))
    gateway.carry("one", "waits", "held")
    waits, held = gateway.journal
    waits.begin()
    waits.last_token_at = held.last_token_at = 1.0
    gateway.peers.heard(Header("one", taken=["waits~0", "held~0"]))
    assert waits.last_token_at > 1.0
    assert held.last_token_at == 1.0  # the replica says later when it begins


@virtual
async def test_silence_of_a_replica_that_has_no_request_counts_too() -> None:
    gateway = Gateway(Serve("one"))
    gateway.peers.heard(Header("one"))
    await asyncio.sleep(3.5)
    assert [name for name, _ in gateway.serve.kills] == ["one"]


@virtual
async def test_a_replica_that_is_gone_is_asked_after_once() -> None:
    gateway = Gateway(Serve())
    gateway.peers.heard(Header("one"))
    await asyncio.sleep(60)
    assert len(gateway.serve.kills) == 1


@virtual
async def test_a_kill_that_fails_is_repeated_until_the_process_is_gone() -> None:
    gateway = Gateway(Serve("one"))
    gateway.serve.fails = 3
    gateway.peers.heard(Header("one"))
    await asyncio.sleep(60)
    assert len(gateway.serve.kills) == 5  # three that failed, one that killed, one that found nothing


def test_a_kill_that_ray_does_not_answer_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would hold one thread after the other."""
    answered = asyncio.Event()

    async def call(function: Callable[..., Any], *arguments: Any) -> Any:
        existed = function(*arguments)
        await answered.wait()
        return existed

    async def main() -> None:
        gateway = Gateway(Serve("one", "two"))
        gateway.peers.heard(Header("one"))
        gateway.peers.heard(Header("two"))
        await asyncio.sleep(60)
        assert sorted(name for name, _ in gateway.serve.kills) == ["one", "two"]
        answered.set()
        await asyncio.sleep(60)
        assert len(gateway.serve.kills) == 4  # each is looked for once more, and not there

    monkeypatch.setattr(peers_module.asyncio, "to_thread", call)
    run(main())


@virtual
async def test_the_watch_can_be_switched_off() -> None:
    gateway = Gateway(Serve("one"), Limits(0, 8))
    gateway.carry("one", "a")
    await asyncio.sleep(60)
    assert (gateway.lost, gateway.serve.kills) == ([], [])


@virtual
async def test_a_gateway_that_was_itself_stopped_blames_nobody() -> None:
    gateway = Gateway(Serve("one"))
    gateway.carry("one", "a")
    await asyncio.sleep(0.1)
    asyncio.get_running_loop()._clock.now += 30  # type: ignore[attr-defined]
    await asyncio.sleep(10)
    assert (gateway.lost, gateway.serve.kills) == ([], [])


@virtual
async def test_nor_those_of_which_it_then_hears_what_they_said_before() -> None:
    """They have stopped talking to it by now, and do so until it sends them a request."""
    gateway = Gateway(Serve("one", "two"))
    gateway.carry("one", "a")
    await asyncio.sleep(0.1)
    asyncio.get_running_loop()._clock.now += 90  # type: ignore[attr-defined]
    await asyncio.sleep(0.6)
    gateway.peers.heard(Header("one"))
    await gateway.hear(10, "two")
    assert (gateway.lost, gateway.serve.kills) == ([], [])
    await asyncio.sleep(3.5)
    assert [name for name, _ in gateway.serve.kills] == ["two"]


@virtual
async def test_a_gateway_that_is_late_counts_no_more_than_it_could_have_heard() -> None:
    gateway = Gateway(Serve("one"))
    gateway.carry("one", "a")
    for _ in range(2):
        await asyncio.sleep(0.1)
        asyncio.get_running_loop()._clock.now += 4  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (now(), gateway.serve.kills) == (8.2, [])


@virtual
async def test_streams_leave_a_replica_that_is_being_stopped_at_a_pace() -> None:
    gateway = Gateway(Serve("two"))
    gateway.carry("one", *map(str, range(40)))
    await gateway.hear(6, "one", "two", leaving_s=lambda: 100)
    seconds = [int(at) for _, at in gateway.moved]
    assert len(gateway.moved) == 40
    assert max(seconds.count(second) for second in seconds) <= 8
    assert (gateway.lost, gateway.serve.kills) == ([], [])


@virtual
async def test_they_leave_faster_where_the_time_would_not_do() -> None:
    gateway = Gateway(Serve("two"))
    gateway.carry("one", *map(str, range(400)))
    left = iter(x * BEAT_S for x in range(24, 0, -1))
    await gateway.hear(11, "one", leaving_s=lambda: next(left))
    assert len(gateway.moved) == 400


@virtual
async def test_they_run_on_where_nobody_can_take_them() -> None:
    gateway = Gateway(Serve("one"))
    gateway.carry("one", "a")
    await gateway.hear(5, "one", leaving_s=lambda: 100)
    assert gateway.moved == []
    assert gateway.serve.looks > 0
    gateway.serve.ids.add("two")
    await gateway.hear(2, "one", leaving_s=lambda: 100)
    assert [name for name, _ in gateway.moved] == ["a"]


@virtual
async def test_they_run_on_while_moves_wait_for_their_turn_but_not_to_the_end() -> None:
    gateway = Gateway(Serve("two"))
    gateway.carry("one", *map(str, range(40)))
    await gateway.budget.take(100_000)
    left = iter(x * BEAT_S for x in range(24, 0, -1))
    await gateway.hear(8, "one", leaving_s=lambda: next(left))
    assert gateway.moved == []
    await gateway.hear(3, "one", leaving_s=lambda: next(left))
    assert len(gateway.moved) == 40


@virtual
async def test_none_moves_to_a_replica_that_leaves_too() -> None:
    gateway = Gateway(Serve("one", "two"))
    gateway.carry("one", "a")
    gateway.carry("two", "b")
    gateway.peers.heard(Header("two", leaving_s=100))
    await gateway.hear(5, "one", "two", leaving_s=lambda: 100)
    assert gateway.moved == []


@virtual
async def test_what_could_not_go_on_faithfully_runs_on() -> None:
    gateway = Gateway(Serve("two"))
    gateway.carry("one", "seeded", seed=1)
    gateway.carry("one", "plain")
    await gateway.hear(5, "one", leaving_s=lambda: 100)
    assert [name for name, _ in gateway.moved] == ["plain"]


@virtual
async def test_streams_stay_where_they_are_until_the_replica_says_that_they_should_move() -> None:
    gateway = Gateway(Serve("one", "two"))
    gateway.carry("one", "a")
    await gateway.hear(60, "one", "two")
    assert gateway.moved == []


@virtual
async def test_nothing_new_goes_to_a_replica_whose_streams_may_still_end_there() -> None:
    gateway = Gateway(Serve("one", "two"))
    gateway.carry("one", "a")
    await gateway.hear(60, "one", "two", leaving_s=lambda: math.inf)
    assert (gateway.moved, gateway.peers.suspects) == ([], {"one"})


def test_no_request_should_go_to_a_replica_that_is_silent_or_leaves() -> None:
    async def main() -> None:
        gateway = Gateway(Serve("a", "b"), Limits(0, 8))
        for name in ("a", "b"):
            gateway.peers.heard(Header(name))
        assert gateway.peers.suspects == set()
        gateway.peers.heard(Header("b", leaving_s=30.0))
        assert gateway.peers.suspects == {"b"}
        await asyncio.sleep(peers_module.SUSPECT_S + BEAT_S)
        assert gateway.peers.suspects == {"a", "b"}
        for name in ("a", "b"):
            gateway.peers.heard(Header(name))
        assert gateway.peers.suspects == {"b"}  # which has said that it leaves
        gateway.peers.forget("b")
        assert gateway.peers.suspects == set()

    run(main())
