"""Admission: who runs, who waits, who is refused, and in which order. All in virtual time."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.gateway.admission import WEIGHTS, Admission, AdmissionConfig, Tier
from serve_app.gateway.deadlines import client_deadline
from serve_app.gateway.errors import BadRequest, Overloaded
from tests.virtual_time import now, run


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


def retry_after(error: Overloaded) -> int:
    return int(dict(error.headers)[b"retry-after"])


async def serve(
    admission: Admission, key: str, cost: int, order: list[str], *, tier: Tier = "normal", seconds: float = 1
) -> None:
    [slot] = await admission.enter(key, tier, [cost])
    order.append(key)
    await asyncio.sleep(seconds)
    slot.leave()


async def measured(admission: Admission, *, cost: int = 100, seconds: float = 1) -> Admission:
    """With one request served, so that it knows how long they take."""
    await serve(admission, "first", cost, [], seconds=seconds)
    return admission


def test_capacity_runs_at_once_and_the_rest_waits_its_turn() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(), capacity=2)
        order: list[str] = []
        tasks = [asyncio.create_task(serve(admission, f"k{n}", 10, order)) for n in range(5)]
        await settle()
        assert (order, admission.running, admission.waiting, admission.waiting_tokens) == (["k0", "k1"], 2, 3, 30)
        await asyncio.gather(*tasks)
        assert order == ["k0", "k1", "k2", "k3", "k4"]
        assert (now(), admission.running, admission.waiting, admission.waiting_tokens) == (3, 0, 0, 0)

    run(main())


def test_a_request_gets_all_its_places_together_or_none() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(), capacity=3)
        held = await admission.enter("a", "normal", [1, 1])
        pair = asyncio.create_task(admission.enter("b", "normal", [10, 20]))
        single = asyncio.create_task(admission.enter("b", "normal", [1]))
        await settle()
        assert (admission.running, admission.waiting, admission.waiting_tokens) == (2, 2, 31)
        held[0].leave()
        assert [slot.cost for slot in await pair] == [10, 20]
        await settle()
        assert (admission.running, admission.waiting, single.done()) == (3, 1, False)
        held[1].leave()
        assert len(await single) == 1

    run(main())


def test_a_request_for_more_places_than_there_are_runs_alone() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(), capacity=2)
        [slot] = await admission.enter("a", "normal", [1])
        large = asyncio.create_task(admission.enter("a", "normal", [1] * 5))
        await settle()
        assert (admission.running, admission.waiting) == (1, 1)
        slot.leave()
        slots = await large
        waiting = asyncio.create_task(admission.enter("a", "normal", [1]))
        await settle()
        assert (admission.running, admission.waiting) == (5, 1)
        for slot in slots[:3]:
            slot.leave()
        await settle()
        assert (admission.running, waiting.done()) == (2, False)
        slots[3].leave()
        await waiting

    run(main())


@pytest.mark.parametrize("cancelled", [True, False])
def test_who_needs_less_goes_on_when_the_one_before_it_gives_up(cancelled: bool) -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(), capacity=2)
        await admission.enter("a", "normal", [1])
        pair = asyncio.create_task(admission.enter("b", "normal", [1, 1], deadline=now() + 3))
        single = asyncio.create_task(admission.enter("b", "normal", [1]))
        await settle()
        assert (admission.running, admission.waiting) == (1, 2)
        if cancelled:
            pair.cancel()
        await single
        assert (now(), pair.done(), admission.running) == (0 if cancelled else 3, True, 2)
        assert pair.cancelled() is cancelled

    run(main())


class Busy:
    """A model with places and a queue as drawn, and what is asked of it then."""

    def __init__(
        self, capacity: int, max_waiting: int, asked: Sequence[tuple[str, list[int]]], measured_s: int
    ) -> None:
        self.config = AdmissionConfig(max_waiting=max_waiting, max_waiting_tokens=60)
        self.capacity, self.asked, self.measured_s = capacity, asked, measured_s

    async def open(self) -> Admission:
        admission = Admission(self.config, capacity=1)
        if self.measured_s:
            await measured(admission, cost=10, seconds=self.measured_s)
        admission.set_capacity(self.capacity)
        self.tasks = [asyncio.create_task(admission.enter(key, "normal", costs)) for key, costs in self.asked]
        await settle()
        return admission

    async def refuses(self, admission: Admission, deadline: float | None) -> bool:
        """Whether the cheapest request of a key is refused on the spot."""
        task = asyncio.create_task(admission.enter("k0", "normal", [1], deadline))
        await settle()
        refused = task.done() and task.exception() is not None
        task.cancel()
        return refused


@given(
    busy=st.builds(
        Busy,
        st.integers(0, 3),
        st.integers(0, 4),
        st.lists(
            st.tuples(st.sampled_from(["k0", "k1"]), st.lists(st.integers(1, 30), min_size=1, max_size=2)), max_size=8
        ),
        st.sampled_from([0, 1, 20]),
    ),
    deadline=st.sampled_from([None, 0.5, 5.0, 60.0]),
)
@settings(max_examples=200, deadline=None)
def test_what_would_be_refused_is_known_before_its_tokens_are_counted(busy: Busy, deadline: float | None) -> None:
    async def main() -> None:
        admission = await busy.open()
        state = (admission.running, admission.waiting, admission.waiting_tokens)
        latest = None if deadline is None else now() + deadline
        try:
            admission.check("k0", "normal", latest)
            known = False
        except Overloaded:
            known = True
        assert (admission.running, admission.waiting, admission.waiting_tokens) == state
        assert known == await busy.refuses(admission, latest)
        for task in busy.tasks:
            task.cancel()
        await asyncio.gather(*busy.tasks, return_exceptions=True)

    run(main())


def test_leaving_twice_frees_one_place() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(), capacity=2)
        [first, _] = await admission.enter("a", "normal", [1, 1])
        first.leave()
        first.leave(5)
        assert admission.running == 1

    run(main())


def test_more_capacity_admits_at_once_and_less_takes_effect_as_requests_leave() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(), capacity=0)
        tasks = [asyncio.create_task(admission.enter("a", "normal", [1])) for _ in range(4)]
        await settle()
        assert (admission.running, admission.waiting) == (0, 4)
        admission.set_capacity(3)
        await settle()
        slots = [slot for task in tasks if task.done() for slot in task.result()]
        assert (admission.running, admission.waiting, len(slots)) == (3, 1, 3)
        admission.set_capacity(1)
        slots[0].leave()
        slots[1].leave()
        assert (admission.running, admission.waiting) == (1, 1)
        slots[2].leave()
        assert (admission.running, admission.waiting) == (1, 0)
        (await tasks[3])[0].leave()

    run(main())


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def main() -> None:
        admission = await measured(Admission(AdmissionConfig(max_waiting=3), capacity=1), cost=100, seconds=2)
        tasks = [asyncio.create_task(serve(admission, "a", 100, [], seconds=2)) for _ in range(4)]
        await settle()
        start = now()
        with pytest.raises(Overloaded) as refused:
            await admission.enter("a", "normal", [100])
        # 300 tokens wait and one request runs, at 50 tokens a second.
        assert (now(), retry_after(refused.value), refused.value.status) == (start, 8, 503)
        assert refused.value.code == "server_is_overloaded"
        await asyncio.gather(*tasks)

    run(main())


@pytest.mark.parametrize(("seconds", "expected"), [(0.01, 1), (9, 60)])
def test_retry_after_stays_between_a_second_and_a_minute(seconds: float, expected: int) -> None:
    async def main() -> None:
        config = AdmissionConfig(max_waiting=9, max_wait_s=1000)
        admission = await measured(Admission(config, capacity=1), seconds=seconds)
        tasks = [asyncio.create_task(serve(admission, "a", 100, [])) for _ in range(10)]
        await settle()
        with pytest.raises(Overloaded) as refused:
            await admission.enter("a", "normal", [100])
        assert retry_after(refused.value) == expected
        await asyncio.gather(*tasks)

    run(main())


def test_waiting_tokens_are_bounded_but_one_large_request_may_wait() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(max_waiting_tokens=1000), capacity=0)
        large = asyncio.create_task(admission.enter("a", "normal", [5000]))
        await settle()
        assert admission.waiting_tokens == 5000
        with pytest.raises(Overloaded):
            await admission.enter("a", "normal", [1])
        large.cancel()
        await settle()
        assert admission.waiting_tokens == 0

    run(main())


def test_a_key_that_fills_the_queue_makes_place_for_others() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(max_waiting=4), capacity=0)
        greedy = [asyncio.create_task(admission.enter("greedy", "normal", [10])) for _ in range(4)]
        await settle()
        polite = [asyncio.create_task(admission.enter("polite", "normal", [10])) for _ in range(2)]
        await settle()
        assert [isinstance(task.exception(), Overloaded) for task in greedy[2:]] == [True, True]
        with pytest.raises(Overloaded):  # both keys have the same now
            await admission.enter("polite", "normal", [10])
        admission.set_capacity(4)
        assert [(await task)[0].key for task in greedy[:2] + polite] == ["greedy", "greedy", "polite", "polite"]

    run(main())


def test_one_that_cannot_be_served_before_its_deadline_is_refused_at_once() -> None:
    async def main() -> None:
        admission = await measured(Admission(AdmissionConfig(), capacity=1))
        running = asyncio.create_task(serve(admission, "a", 100, []))
        waiting = asyncio.create_task(serve(admission, "a", 100, []))
        await settle()
        start = now()
        with pytest.raises(Overloaded) as refused:
            await admission.enter("a", "normal", [100], deadline=start + 1.9)
        assert (now(), retry_after(refused.value)) == (start, 2)
        [slot] = await admission.enter("a", "normal", [100], deadline=start + 2.1)
        assert now() == start + 2
        slot.leave()
        await asyncio.gather(running, waiting)

    run(main())


def test_a_key_with_nothing_waiting_is_not_refused_for_the_queue_of_another() -> None:
    async def main() -> None:
        admission = await measured(Admission(AdmissionConfig(max_wait_s=100), capacity=1))
        order: list[str] = []
        greedy = [asyncio.create_task(serve(admission, "greedy", 100, order)) for _ in range(50)]
        await settle()
        start = now()
        [slot] = await admission.enter("polite", "normal", [100], deadline=start + 3)
        assert now() <= start + 2
        slot.leave()
        await asyncio.gather(*greedy)

    run(main())


def test_a_waiting_request_is_refused_when_its_deadline_passes() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(max_wait_s=10), capacity=1)
        [stuck] = await admission.enter("a", "normal", [100])
        for deadline, ends in ((now() + 4, 4), (None, 14), (now() + 100, 24)):
            with pytest.raises(Overloaded) as refused:
                await admission.enter("a", "normal", [100], deadline=deadline)
            assert (now(), retry_after(refused.value), admission.waiting) == (ends, 5, 0)
        stuck.leave()

    run(main())


def test_the_usual_time_to_the_first_token_is_kept_free_and_fades_when_it_refuses() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(), capacity=1)
        [slot] = await admission.enter("a", "normal", [100])
        await asyncio.sleep(2)
        slot.first_token()
        slot.leave()
        refusals = 0
        while True:
            try:
                [slot] = await admission.enter("a", "normal", [100], deadline=now() + 1.5)
                slot.leave()
                break
            except Overloaded:
                refusals += 1
        assert refusals == 3  # 2.0, 1.8, 1.62, and then 1.458

    run(main())


def test_a_cancelled_request_leaves_no_trace() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(), capacity=1)
        [slot] = await admission.enter("a", "normal", [100])
        waiting = asyncio.create_task(admission.enter("b", "normal", [100]))
        await settle()
        waiting.cancel()
        await settle()
        assert (admission.running, admission.waiting) == (1, 0)
        # Given its place and cancelled before it could take it, and the other way round.
        for given_first in (True, False):
            waiting = asyncio.create_task(admission.enter("b", "normal", [100]))
            await settle()
            steps = [slot.leave, waiting.cancel]
            for step in steps if given_first else reversed(steps):
                step()
            await settle()
            assert waiting.cancelled()
            assert (admission.running, admission.waiting) == (0, 0)
            [slot] = await admission.enter("a", "normal", [100])

    run(main())


def test_a_polite_key_waits_for_one_request_however_many_a_greedy_one_has() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(max_wait_s=10_000), capacity=1)
        order: list[str] = []
        greedy = [asyncio.create_task(serve(admission, "greedy", 100, order)) for _ in range(1000)]
        for at in (10.5, 200.5, 700.5):
            await asyncio.sleep(at - now())
            await serve(admission, "polite", 100, order)
            assert now() - at <= 1.5 + 1  # at most the running one, one of the greedy key's, and its own
        await asyncio.gather(*greedy)

    run(main())


@pytest.mark.parametrize("tiers", [("high", "normal"), ("normal", "low"), ("high", "low"), ("normal", "normal")])
def test_shares_follow_the_weights_to_within_one_request(tiers: tuple[Tier, Tier]) -> None:
    run(_check_shares({"a": (tiers[0], [7, 300, 50]), "b": (tiers[1], [120])}, capacity=1))


@given(
    flows=st.lists(
        st.tuples(st.sampled_from(["high", "normal", "low"]), st.lists(st.integers(1, 500), min_size=1, max_size=5)),
        min_size=2,
        max_size=5,
    ),
    capacity=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_shares_follow_the_weights_for_any_mix(flows: list[tuple[Tier, list[int]]], capacity: int) -> None:
    run(_check_shares({f"k{n}": flow for n, flow in enumerate(flows)}, capacity))


async def _check_shares(flows: dict[str, tuple[Tier, list[int]]], capacity: int) -> None:
    """While all keys have requests waiting, tokens served / weight differ by one request of each at most.

    Source of the bound: Goyal et al., theorem 1.
    """
    admission = Admission(AdmissionConfig(max_wait_s=10_000), capacity=0)
    rounds = 60
    served = dict.fromkeys(flows, 0.0)
    left = dict.fromkeys(flows, rounds)
    unit = {key: max(costs) / WEIGHTS[tier] for key, (tier, costs) in flows.items()}

    async def one(key: str, tier: Tier, cost: int) -> None:
        [slot] = await admission.enter(key, tier, [cost])
        left[key] -= 1
        served[key] += cost / WEIGHTS[tier]
        if min(left.values()) > 0:
            for other in flows:
                assert abs(served[key] - served[other]) <= unit[key] + unit[other] + 1e-6
        await asyncio.sleep(1)
        slot.leave()

    requests = [one(key, tier, costs[n % len(costs)]) for n in range(rounds) for key, (tier, costs) in flows.items()]
    tasks = [asyncio.create_task(request) for request in requests]
    await settle()
    admission.set_capacity(capacity)
    await asyncio.gather(*tasks)
    assert (admission.running, admission.waiting) == (0, 0)


def test_a_key_that_asked_for_more_than_it_used_gets_the_difference_back() -> None:
    async def main() -> None:
        admission = Admission(AdmissionConfig(max_wait_s=10_000), capacity=1)
        order: list[str] = []

        async def one(key: str, cost: int, used: int) -> None:
            [slot] = await admission.enter(key, "normal", [cost])
            order.append(key)
            await asyncio.sleep(1)
            slot.leave(used)

        [blocker] = await admission.enter("x", "normal", [1])
        tasks = [asyncio.create_task(one("careful", 1000, 100)) for _ in range(10)]
        tasks += [asyncio.create_task(one("exact", 100, 100)) for _ in range(10)]
        await settle()
        blocker.leave()
        await asyncio.gather(*tasks)
        assert order[:8].count("careful") == 4

    run(main())


def header_cases() -> Iterator[tuple[dict[str, str], float | None]]:
    yield {}, None
    yield {"x-request-deadline-ms": "1500"}, 101.5
    yield {"x-stainless-read-timeout": "600"}, 702.0
    yield {"x-stainless-read-timeout": "0.5"}, 102.5
    yield {"x-request-deadline-ms": "1", "x-stainless-read-timeout": "600"}, 100.001
    for bad in ("", "NOT_GIVEN", "None", "nan", "inf", "-1", "0", "1e999"):
        yield {"x-stainless-read-timeout": bad}, None


@pytest.mark.parametrize(("headers", "expected"), header_cases())
def test_the_client_says_how_long_it_waits(headers: dict[str, str], expected: float | None) -> None:
    assert client_deadline([(k.encode(), v.encode()) for k, v in headers.items()], 100.0, 102.0) == expected


@pytest.mark.parametrize("value", [b"", b"0", b"-5", b"1.5", b"1e3", b"86400001", b"9" * 5000, "²".encode("latin-1")])
def test_a_deadline_header_that_is_no_number_is_refused(value: bytes) -> None:
    with pytest.raises(BadRequest, match="`x-request-deadline-ms` must be a whole number from 1 to 86400000") as error:
        client_deadline([(b"x-request-deadline-ms", value)], 0.0, 0.0)
    assert error.value.param == "x-request-deadline-ms"
