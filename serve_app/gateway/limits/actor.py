"""The limiter that all gateways share through one Ray actor.

`MemoryLimiter` is the actor: an async class whose arguments and answers pickle. If the actor restarts, it begins
with full buckets and free slots.
"""

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from serve_app.fleet.failures import UNREACHABLE
from serve_app.gateway.limits.limiter import Claim, Decision, Holder

FAILURES = UNREACHABLE
"""What a call raises when the actor cannot be used."""


class Call(Protocol):
    """Calls a method of the actor by name, as `getattr(handle, method).remote(*arguments)` does."""

    def __call__(self, method: str, *arguments: Any) -> Awaitable[Any]: ...


class ActorLimiter:
    """A `Limiter` whose state is in a `MemoryLimiter` elsewhere. Each method raises one of `FAILURES` if it is gone."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def reserve(self, claim: Claim) -> Decision:
        decision: Decision = await self._call("reserve", claim)
        return decision

    async def settle(self, holder: Holder, used: int) -> None:
        await self._call("settle", holder, used)

    async def release(self, holder: Holder) -> None:
        await self._call("release", holder)

    async def renew(self, holders: Sequence[Holder]) -> None:
        await self._call("renew", holders)
