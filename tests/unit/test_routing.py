"""Where requests go: home to their prefix, within a bound of the load, and never to a replica that is suspect."""

import asyncio
from types import SimpleNamespace
from typing import Any

import cloudpickle
import hypothesis.strategies as st
import pytest
from hypothesis import given
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve._private.request_router.common import PendingRequest, ReplicaQueueLengthCache
from ray.serve.config import RequestRouterConfig

from serve_app.fleet.prefix import BLOCK
from serve_app.fleet.router import ROUTER, FleetRouter
from serve_app.fleet.routing import AWAY_S, BOUND, FRESH_S, Balancer, Hint, rank
from serve_app.vllm_seam import EngineCoreRequest, SamplingParams

REPLICAS = ["a", "b", "c", "d"]
LOADS = st.dictionaries(st.text("abcdef", min_size=1, max_size=6), st.integers(0, 10_000), min_size=1, max_size=20)
KEYS = st.none() | st.binary(min_size=8, max_size=8)


def request(request_id: str = "r", prompt: list[int] | None = None, most: int = 50) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(range(100)) if prompt is None else prompt,
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=most),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


@given(LOADS, st.integers(1, 10_000), KEYS)
def test_the_first_choice_is_within_the_bound_of_the_mean(loads: dict[str, int], cost: int, key: bytes | None) -> None:
    order = rank(loads, cost, key, "request")
    assert sorted(order) == sorted(loads)
    assert loads[order[0]] <= BOUND * (sum(loads.values()) + cost) / len(loads)
    if key is None:
        assert loads[order[0]] == min(loads.values())


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=200), st.integers(2, 6))
def test_a_hot_prefix_never_overloads_one_replica(costs: list[int], count: int) -> None:
    balancer, names = Balancer(), [f"r{number}" for number in range(count)]
    for cost in costs:
        hint = Hint(balancer, "r", b"the same", cost)
        hint.sent(hint.order(names)[0])
    mean = sum(costs) / len(names)
    assert max(balancer._tokens.values()) <= BOUND * mean + max(costs)


@given(st.sets(st.binary(min_size=8, max_size=8), min_size=1, max_size=200), st.integers(2, 8))
def test_only_the_keys_of_a_replica_that_goes_are_moved(keys: set[bytes], count: int) -> None:
    names = [f"r{number}" for number in range(count)]
    before = {key: rank(dict.fromkeys(names, 0), 1, key, "")[0] for key in keys}
    after = {key: rank(dict.fromkeys(names[1:], 0), 1, key, "")[0] for key in keys}
    moved = {key for key in keys if before[key] != after[key]}
    assert moved == {key for key in keys if before[key] == names[0]}


def test_keys_are_spread_evenly_and_a_new_replica_takes_its_share_only() -> None:
    keys = [number.to_bytes(8, "big") for number in range(4000)]
    before = [rank(dict.fromkeys("abc", 0), 1, key, "")[0] for key in keys]
    after = [rank(dict.fromkeys("abcd", 0), 1, key, "")[0] for key in keys]
    assert all(1200 < before.count(name) < 1470 for name in "abc")
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {"d"}
    assert 900 < after.count("d") < 1100


def test_a_conversation_stays_with_its_replica_and_others_go_elsewhere() -> None:
    balancer = Balancer()
    homes = []
    for number in range(40):
        prompt = [number] * 4 * BLOCK
        for _turn in range(3):
            hint = balancer.hint(request(prompt=prompt))
            homes.append(hint.order(REPLICAS)[0])
            hint.end()
            prompt = prompt + [7] * BLOCK
    assert [len(set(homes[turn : turn + 3])) for turn in range(0, 120, 3)] == [1] * 40
    assert set(homes) == set(REPLICAS)


def test_short_prompts_go_to_the_least_loaded_and_idle_ones_are_used_alike() -> None:
    balancer = Balancer()
    chosen = [balancer.hint(request(f"r{number}", [1, 2, 3])).order(REPLICAS)[0] for number in range(8)]
    assert sorted(chosen) == sorted(REPLICAS * 2)
    alone = [Balancer().hint(request(f"r{number}", [1])).order(REPLICAS)[0] for number in range(60)]
    assert set(alone) == set(REPLICAS)


def test_a_request_counts_from_its_choice_until_its_end_and_where_it_was_taken() -> None:
    balancer = Balancer()
    hint = balancer.hint(request())
    first, second, *_ = hint.order(REPLICAS)
    assert dict(balancer._tokens) == {first: 150}
    hint.sent(second)
    assert dict(balancer._tokens) == {second: 150}
    hint.end()
    assert dict(balancer._tokens) == {}
    hint.sent(first)  # the router's thread had not heard of the end
    hint.order(REPLICAS)
    assert dict(balancer._tokens) == {}


def test_a_suspect_gets_nothing_and_where_all_are_the_request_waits() -> None:
    suspects: set[str] = set()
    hint = Balancer(suspects).hint(request())
    home = hint.order(REPLICAS)[0]
    suspects.add(home)
    assert home not in hint.order(REPLICAS)
    suspects.update(REPLICAS)
    assert hint.order(REPLICAS) == []
    suspects.clear()
    assert hint.order(REPLICAS)[0] == home


def test_requests_of_other_gateways_count_while_the_replica_reports_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    balancer = Balancer()
    busy = balancer.hint(request(prompt=[1])).order(["a", "b"])[0]
    idle = "b" if busy == "a" else "a"
    balancer.report(busy, 1)  # its own
    balancer.report(idle, 5)
    assert balancer.hint(request(prompt=[1])).order(["a", "b"])[0] == busy
    now[0] += FRESH_S
    assert balancer.hint(request(prompt=[1])).order(["a", "b"])[0] == idle


def test_an_answer_is_expected_to_be_as_long_as_usual_at_most() -> None:
    balancer = Balancer()
    for _ in range(200):
        balancer.learn(10)
    assert balancer.hint(request(prompt=[1] * 5, most=4000)).cost == pytest.approx(15, abs=0.01)
    assert balancer.hint(request(prompt=[1] * 5, most=3)).cost == 8


def test_nothing_of_a_hint_travels_to_a_replica() -> None:
    hint = Balancer().hint(request())
    assert cloudpickle.loads(cloudpickle.dumps({"hint": hint})) == {"hint": None}


class Router(FleetRouter):
    """The router without Serve behind it."""

    def __init__(self) -> None:
        self._replica_queue_len_cache = ReplicaQueueLengthCache()


def pending(**kwargs: Any) -> PendingRequest:
    metadata: Any = SimpleNamespace(request_id="r", internal_request_id="i", multiplexed_model_id="")
    return PendingRequest(args=[], kwargs=kwargs, metadata=metadata, future=asyncio.Future())


def running(*names: str) -> list[Any]:
    deployment = DeploymentID("replica-m", "chat")
    return [SimpleNamespace(replica_id=ReplicaID(name, deployment)) for name in names]


def named(ranked: list[list[Any]]) -> list[list[str]]:
    return [[each.replica_id.unique_id for each in group] for group in ranked]


async def test_serves_router_follows_the_hint_without_asking_the_replicas() -> None:
    router, balancer, replicas = Router(), Balancer(), running(*REPLICAS)
    hint = balancer.hint(request())
    call = pending(hint=hint)
    assert named(await router.choose_replicas(replicas, call)) == [[name] for name in hint.order(REPLICAS)]
    assert call.routing_context.should_backoff
    assert all(router.replica_queue_len_cache.get(each.replica_id) == 0 for each in replicas)
    router.on_request_routed(call, replicas[2].replica_id, None)
    assert hint.replica == "c"


class Reached:
    """A replica as Serve's router knows it."""

    max_ongoing_requests = 100

    def __init__(self, name: str) -> None:
        self.replica_id = ReplicaID(name, DeploymentID("replica-m", "chat"))
        self.queue_len = 1

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.queue_len


@pytest.mark.parametrize("why", ["dead", "leaving", "full"])
async def test_a_call_that_a_replica_did_not_take_goes_elsewhere_at_once(why: str) -> None:
    names = DeploymentID("replica-m", "chat")
    router = FleetRouter(names, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.update_replicas([Reached(name) for name in REPLICAS])  # type: ignore[misc]
    balancer = Balancer()
    hint = balancer.hint(request())
    call = pending(hint=hint)
    tried = []
    for attempt in range(len(REPLICAS)):
        replica = await router._choose_replica_for_request(call, is_retry=attempt > 0)
        tried.append(replica.replica_id.unique_id)
        # As ray.serve._private.router does with a replica that is dead, or that says it takes no more.
        router.on_send_request(replica.replica_id)
        if why == "dead":
            router.on_replica_actor_unavailable(replica.replica_id)
        else:
            replica.queue_len = 100 if why == "full" else 1  # type: ignore[attr-defined]
            router.on_new_queue_len_info(replica.replica_id, replica.queue_len)  # type: ignore[attr-defined]
    assert sorted(tried) == REPLICAS
    # One that is full is soon free again, and Serve asks it whether it is.
    assert sorted(balancer.hint(request()).order(REPLICAS)) == (REPLICAS if why == "full" else [tried[-1]])


def test_a_replica_that_did_not_take_a_request_is_asked_again_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    hint = Balancer().hint(request())
    home = hint.order(REPLICAS)[0]
    hint.not_taken(home)
    assert home not in hint.order(REPLICAS)
    now[0] += AWAY_S
    assert hint.order(REPLICAS)[0] == home


async def test_a_call_without_a_hint_may_go_anywhere() -> None:
    assert named(await Router().choose_replicas(running("a", "b"), pending())) == [["a", "b"]]
    assert named(await Router().choose_replicas(running("a", "b"))) == [["a", "b"]]


def test_serve_finds_the_router_and_ships_it() -> None:
    config = RequestRouterConfig(request_router_class=ROUTER)
    assert config.get_request_router_class().__name__ == "FleetRouter"
