"""Start-time fair queueing: whose request goes next, so that each key gets its share of tokens by weight.

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996. Each key is a flow with a clock of its own. A
request that is served moves its key's clock on by cost / weight, and the key whose clock is furthest behind goes
next. Virtual time is the latest start of a served request; a key that comes back from idleness starts there, so
what it did not use is not saved up. Costs are estimates: `correct` sets the clock right when the truth is known.
"""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Flow(Generic[T]):
    """One key: its clock, and its requests that wait, with their costs."""

    __slots__ = ("clock", "cost", "key", "waiting", "weight")

    def __init__(self, key: str, clock: float) -> None:
        self.key = key
        self.clock = clock
        self.weight = 1.0
        self.cost = 0
        self.waiting: deque[tuple[T, int]] = deque()

    def share(self, extra: int = 0) -> float:
        """How much the flow has waiting, against what its weight entitles it to."""
        return (self.cost + extra) / self.weight


class FairQueue(Generic[T]):
    """Waiting requests of all keys. Work per call grows with the number of keys that wait, not of requests."""

    def __init__(self) -> None:
        self._flows: dict[str, Flow[T]] = {}
        self._virtual = 0.0
        self._length = 0
        self._cost = 0

    def __len__(self) -> int:
        return self._length

    @property
    def cost(self) -> int:
        """Tokens of all that waits."""
        return self._cost

    def push(self, key: str, weight: float, item: T, cost: int) -> None:
        flow = self._flow(key, weight)
        flow.waiting.append((item, cost))
        self._count(flow, 1, cost)

    def pop(self) -> T:
        """Take the request that is next, and charge its key.

        Raises:
            IndexError: nothing waits.
        """
        flow = self._next()
        item, cost = flow.waiting.popleft()
        self._count(flow, -1, -cost)
        self._charge(flow, cost)
        return item

    def first(self) -> T:
        """The request that is next.

        Raises:
            IndexError: nothing waits.
        """
        return self._next().waiting[0][0]

    def charge(self, key: str, weight: float, cost: int) -> None:
        """Charge a key for a request that did not have to wait."""
        self._charge(self._flow(key, weight), cost)

    def correct(self, key: str, tokens: int) -> None:
        """Charge a key for tokens above its estimates, or give back those below."""
        if (flow := self._flows.get(key)) is not None:
            flow.clock += tokens / flow.weight

    def remove(self, key: str, item: T) -> None:
        """Take a request out that no longer waits; nothing happens if it is not there."""
        flow = self._flows.get(key)
        if flow is None:
            return
        for entry in flow.waiting:
            if entry[0] is item:
                flow.waiting.remove(entry)
                self._count(flow, -1, -entry[1])
                return

    def pop_newest_of_largest(self, key: str, weight: float, cost: int) -> T | None:
        """Take out the newest request of the key that has most waiting, to make place for one of another key.

        Returns:
            None where the newcomer's key would itself have most waiting.
        """
        largest = self._larger(key, weight, cost)
        if largest is None:
            return None
        item, its_cost = largest.waiting.pop()
        self._count(largest, -1, -its_cost)
        return item

    def has_larger(self, key: str, weight: float, cost: int) -> bool:
        """Whether `pop_newest_of_largest` would take a request out."""
        return self._larger(key, weight, cost) is not None

    def ahead_of(self, key: str, weight: float) -> float:
        """Tokens that would be served before a new request of this key."""
        own = self._flow(key, weight)
        start = own.clock + own.share()
        ahead = float(own.cost)
        for flow in self._backlogged():
            if flow is not own and flow.clock <= start:
                first_cost = flow.waiting[0][1]
                ahead += min(flow.cost, (start - flow.clock) * flow.weight + first_cost)
        return ahead

    def _next(self) -> Flow[T]:
        backlogged = list(self._backlogged())
        if not backlogged:
            raise IndexError("nothing waits")
        return min(backlogged, key=lambda flow: flow.clock)

    def _larger(self, key: str, weight: float, cost: int) -> Flow[T] | None:
        """The key with most waiting, unless a newcomer's key would itself have most."""
        largest = max(self._backlogged(), key=Flow.share, default=None)
        return None if largest is None or self._flow(key, weight).share(cost) >= largest.share() else largest

    def _flow(self, key: str, weight: float) -> Flow[T]:
        flow = self._flows.get(key)
        if flow is None:
            self._forget_idle()
            flow = self._flows[key] = Flow(key, self._virtual)
        if not flow.waiting:
            flow.clock = max(flow.clock, self._virtual)
            flow.weight = weight
        return flow

    def _forget_idle(self) -> None:
        """Drop the keys whose clocks say nothing that virtual time does not."""
        idle = [key for key, flow in self._flows.items() if not flow.waiting and flow.clock <= self._virtual]
        for key in idle:
            del self._flows[key]

    def _charge(self, flow: Flow[T], cost: int) -> None:
        self._virtual = max(self._virtual, flow.clock)
        flow.clock += cost / flow.weight

    def _count(self, flow: Flow[T], requests: int, cost: int) -> None:
        flow.cost += cost
        self._length += requests
        self._cost += cost

    def _backlogged(self) -> Iterator[Flow[T]]:
        return (flow for flow in self._flows.values() if flow.waiting)
