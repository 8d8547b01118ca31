"""Admission of one model: so many answers run at once, a bounded number of requests waits, the rest is refused at once.

Who waits is served by weighted fair queueing over the keys, in tokens (fair_queue.py). A request is refused as
soon as it is clear that it cannot have its first token in time, so that its client can go elsewhere.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, NonNegativeInt

from serve_app.gateway.errors import Overloaded
from serve_app.gateway.fair_queue import FairQueue
from serve_app.settings import Closed

Tier = Literal["high", "normal", "low"]

WEIGHTS: dict[Tier, float] = {"high": 4.0, "normal": 1.0, "low": 0.25}
"""Shares of tokens while keys compete: one key of tier high gets as much as four of normal or sixteen of low."""

# Retry-After while nothing has been measured yet, and its bounds: clients ignore what is longer than a minute.
UNKNOWN_RETRY_AFTER_S = 5
MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1, 60
# Weight of the newest request in what is usual: about the last twenty count.
NEWEST = 0.1


class AdmissionConfig(Closed):
    """The queue in front of each model."""

    max_waiting: NonNegativeInt = 1000
    """Requests that may wait."""
    max_waiting_tokens: NonNegativeInt = 2_000_000
    """Tokens (prompt and expected answer) of all that wait."""
    max_wait_s: float = Field(default=10, gt=0)
    """Longest time in the queue."""


@dataclass(slots=True, eq=False)
class Slot:
    """A place among what runs. Give it back with `leave`, whatever happened."""

    _admission: "Admission"
    key: str
    cost: int
    _entered: float
    _left: bool = False

    def first_token(self, since: float = 0.0) -> None:
        """Note the first token, that could be computed `since`: the usual time to it is kept free before a deadline."""
        self._entered = max(self._entered, since)
        self._admission.note_prefill(self._entered)

    def leave(self, tokens: int | None = None) -> None:
        """Free the place. Calls after the first do nothing.

        Args:
            tokens: prompt and answer as they were; None: as expected.
        """
        if not self._left:
            self._left = True
            self._admission.release(self, self._entered, tokens)


class Admission:
    """The places of one model and the queue for them. For one event loop, whose time it goes by."""

    def __init__(self, config: AdmissionConfig, capacity: int) -> None:
        """Args:
        config: bounds of the queue.
        capacity: answers that may run at once, of which a request can have several; `set_capacity` changes it.
        """
        self._config = config
        self._capacity = capacity
        self._running = 0
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._loop = asyncio.get_running_loop()
        self._usual_cost: float | None = None
        self._usual_seconds = 0.0
        self._usual_prefill = 0.0

    @property
    def running(self) -> int:
        return self._running

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        return self._queue.cost

    def set_capacity(self, capacity: int) -> None:
        """Change how many may run: more start at once, fewer come about as running ones leave."""
        self._capacity = capacity
        self._admit()

    def check(self, key: str, tier: Tier, deadline: float | None = None) -> None:
        """Refuse at once what `enter` would refuse whatever it costs, before anybody has counted its tokens.

        Raises:
            Overloaded: there is no room to wait, or no place in time.
        """
        weight = WEIGHTS[tier]
        self._latest_start(key, weight, deadline)
        if not self._has_places(1) and self._is_full(1) and not self._queue.has_larger(key, weight, 1):
            raise self._overloaded(key, weight)

    async def enter(self, key: str, tier: Tier, costs: Sequence[int], deadline: float | None = None) -> list[Slot]:
        """Wait for the places of one request, which it gets all together.

        Args:
            key: whose request it is.
            tier: the key's tier.
            costs: for each prompt and choice, the tokens of the prompt plus those expected of the answer.
            deadline: when the client must have its first token, in the event loop's time; None: whenever.

        Raises:
            Overloaded: there is no room to wait, or no place in time.
        """
        weight, costs = WEIGHTS[tier], [max(cost, 1) for cost in costs]
        latest = self._latest_start(key, weight, deadline)
        if self._has_places(len(costs)):
            self._queue.charge(key, weight, sum(costs))
            return self._places(key, costs)
        self._make_room(key, weight, sum(costs))
        return await self._wait(key, weight, costs, latest)

    def note_prefill(self, entered: float) -> None:
        seconds = self._loop.time() - entered
        self._usual_prefill += NEWEST * (seconds - self._usual_prefill) if self._usual_prefill else seconds

    def release(self, slot: Slot, entered: float, tokens: int | None) -> None:
        self._running -= 1
        if tokens is not None:
            self._queue.correct(slot.key, tokens - slot.cost)
        if tokens != 0:  # one that never ran says nothing of how long they run
            self._learn(slot.cost, self._loop.time() - entered)
        self._admit()

    def _latest_start(self, key: str, weight: float, deadline: float | None) -> float:
        """When a request must have its place at the latest; raises Overloaded if it cannot have it by then."""
        now = self._loop.time()
        if deadline is not None and now + self._usual_prefill > deadline:
            # A refusal lets the figure fade, or nothing might ever come to measure it again.
            self._usual_prefill *= 1 - NEWEST
            raise self._overloaded(key, weight)
        latest = now + self._config.max_wait_s
        if deadline is not None:
            latest = min(latest, deadline - self._usual_prefill)
        if not self._has_places(1) and now + self._wait_s(key, weight) > latest:
            raise self._overloaded(key, weight)
        return latest

    async def _wait(self, key: str, weight: float, costs: list[int], latest: float) -> list[Slot]:
        waiter = _Waiter(self._loop.create_future(), key, weight, costs)
        self._queue.push(key, weight, waiter, sum(costs))
        self._admit()
        timer = self._loop.call_at(latest, self._expire, waiter)
        try:
            return await waiter.places
        except asyncio.CancelledError:
            if waiter.places.done() and not waiter.places.cancelled() and waiter.places.exception() is None:
                for slot in waiter.places.result():
                    slot.leave(0)
            self._queue.remove(key, waiter)
            self._admit()
            raise
        finally:
            timer.cancel()

    def _admit(self) -> None:
        while self._queue and self._fits(len(self._queue.first().costs)):
            waiter = self._queue.pop()
            if waiter.places.done():  # its client has just left
                self._queue.correct(waiter.key, -sum(waiter.costs))
            else:
                waiter.places.set_result(self._places(waiter.key, waiter.costs))

    def _has_places(self, number: int) -> bool:
        """Whether a new request gets so many places at once."""
        return not self._queue and self._fits(number)

    def _fits(self, number: int) -> bool:
        """Whether so many places are free; a request that needs more than there are runs alone."""
        return self._running + number <= self._capacity or self._running == 0 < self._capacity

    def _places(self, key: str, costs: list[int]) -> list[Slot]:
        self._running += len(costs)
        return [Slot(self, key, cost, self._loop.time()) for cost in costs]

    def _expire(self, waiter: "_Waiter") -> None:
        self._queue.remove(waiter.key, waiter)
        self._refuse(waiter)
        self._admit()

    def _refuse(self, waiter: "_Waiter") -> None:
        if not waiter.places.done():
            waiter.places.set_exception(self._overloaded(waiter.key, waiter.weight))

    def _make_room(self, key: str, weight: float, cost: int) -> None:
        """See that one more may wait, at the expense of the key that has most waiting if need be.

        A key that fills the queue would otherwise keep all others out of it.
        """
        while self._is_full(cost):
            waiter = self._queue.pop_newest_of_largest(key, weight, cost)
            if waiter is None:
                raise self._overloaded(key, weight)
            self._refuse(waiter)

    def _is_full(self, cost: int) -> bool:
        waiting, tokens = len(self._queue), self._queue.cost + cost
        return waiting >= self._config.max_waiting or (waiting > 0 and tokens > self._config.max_waiting_tokens)

    def _overloaded(self, key: str, weight: float) -> Overloaded:
        seconds = self._wait_s(key, weight) if self._usual_cost is not None else UNKNOWN_RETRY_AFTER_S
        return Overloaded(math.ceil(min(max(seconds, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)))

    def _wait_s(self, key: str, weight: float) -> float:
        """How long a new request of this key would wait; 0 while nothing has been measured.

        What goes before it, and the end of one that runs, at the rate at which all places together free tokens.
        """
        if self._usual_cost is None or not self._usual_seconds:
            return 0.0
        if not self._capacity:
            return math.inf
        rate = self._capacity * self._usual_cost / self._usual_seconds
        return (self._queue.ahead_of(key, weight) + self._usual_cost) / rate

    def _learn(self, cost: int, seconds: float) -> None:
        if self._usual_cost is None:
            self._usual_cost, self._usual_seconds = float(cost), seconds
        else:
            self._usual_cost += NEWEST * (cost - self._usual_cost)
            self._usual_seconds += NEWEST * (seconds - self._usual_seconds)


@dataclass(slots=True, eq=False)
class _Waiter:
    places: asyncio.Future[list[Slot]]
    key: str
    weight: float
    costs: list[int]
