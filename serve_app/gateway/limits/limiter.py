"""What a limiter is: what may be asked of it, what it answers, and the arithmetic that all of them share.

A token bucket holds one minute's limit and refills continuously. Its level is a whole number of units, 60 000 to
one request or token: a limit of L then refills L units a millisecond, so that all arithmetic is of whole numbers,
exact, and the same in Python and in Redis' Lua (below 2**53).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

UNITS = 60_000

# What all that one request asks of a limiter elsewhere may take together.
PATIENCE_S = 0.05

# Nobody knows when an answer ends, so who waits for a slot is told to look again after this time.
SLOT_WAIT_MS = 1000

Limit = Literal["requests", "tokens", "concurrent"]


class Holder(NamedTuple):
    """One open request of a key. The request's id must be the service's own, unique among all gateways."""

    key: str
    request: str


class Quota(NamedTuple):
    """What a key may use; None: no limit.

    A changed quota holds from the next claim on: a full bucket is full under it too, another keeps its level.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


class Claim(NamedTuple):
    """What a request asks for now. Any claim also takes the request's slot, unless it has one.

    A request may claim more than once: `requests=1` when its key is known, `tokens` when they are counted.
    """

    holder: Holder
    quota: Quota
    requests: int = 0
    tokens: int = 0
    """Prompt tokens plus the most that may be generated."""
    patience_s: float = PATIENCE_S
    """Seconds that the request can still wait for an answer from elsewhere."""


class Level(NamedTuple):
    """How full a bucket is."""

    limit: int
    """A minute's requests or tokens, which is also the capacity."""
    units: int
    """Below zero: debt."""

    @property
    def remaining(self) -> int:
        """Whole requests or tokens, rounded down."""
        return self.units // UNITS

    @property
    def reset_ms(self) -> int:
        """Milliseconds until the bucket is full."""
        return self.wait_ms(self.limit)

    def wait_ms(self, cost: int) -> int:
        """Milliseconds until the bucket holds `cost`, rounded up."""
        return max(0, -((self.units - cost * UNITS) // self.limit))


class Refusal(NamedTuple):
    """The limit that refused a claim: of several the one with the longest wait."""

    limit: Limit
    allowed: int
    """The limit's value."""
    cost: int
    """What the claim asked of it."""
    wait_ms: int | None
    """When the same claim may pass; None: never, it is larger than the limit."""


class Decision(NamedTuple):
    """The answer to a claim, and how full the key's buckets are after it; None: no such limit."""

    refusal: Refusal | None
    requests: Level | None
    tokens: Level | None


class Limiter(Protocol):
    """Keeps the buckets and slots of all keys.

    A request's slot and what it has charged are held for the lease time and as often as it is renewed. So nothing
    leaks when a gateway dies: slots come free, and tokens that were reserved stay charged.
    """

    async def reserve(self, claim: Claim) -> Decision:
        """Charge every bucket and take the slot, or do nothing of it.

        A refusal also gives back the request that the holder has charged, and its slot unless it has tokens
        reserved: those it must still settle, since they may have been used.
        """
        ...

    async def settle(self, holder: Holder, used: int) -> None:
        """End a request: its slot is free, and `used` tokens are charged in place of the reserved ones.

        What it used beyond them is charged too, below zero if need be. Without effect if it holds nothing.
        """
        ...

    async def release(self, holder: Holder) -> None:
        """End a request that never ran: its slot and all that it has charged is given back.

        Without effect if it holds nothing.
        """
        ...

    async def renew(self, holders: Sequence[Holder]) -> None:
        """Hold on for another lease time, as far as they still hold something."""
        ...


def decide(claim: Claim, requests: Level | None, tokens: Level | None, slots: int) -> Refusal | None:
    """Whether a claim passes, by the state before it.

    Args:
        requests: the bucket of requests; None: no limit.
        tokens: the bucket of tokens; None: no limit.
        slots: how many of the key's other requests have a slot.
    """
    refusals = [
        *_over("requests", requests, claim.requests),
        *_over("tokens", tokens, claim.tokens),
    ]
    concurrent = claim.quota.concurrent
    if concurrent is not None and slots >= concurrent:
        refusals.append(Refusal("concurrent", concurrent, 1, SLOT_WAIT_MS))
    return max(refusals, key=_severity, default=None)


def _over(limit: Limit, level: Level | None, cost: int) -> list[Refusal]:
    if level is None or cost == 0 or level.units >= cost * UNITS:
        return []
    return [Refusal(limit, level.limit, cost, None if cost > level.limit else level.wait_ms(cost))]


def _severity(refusal: Refusal) -> float:
    return float("inf") if refusal.wait_ms is None else refusal.wait_ms
