"""The limiter of one process: for a single gateway, inside the limiter's actor, and while the shared one is away."""

import time
from collections.abc import Callable, Sequence

from serve_app.gateway.limits.limiter import UNITS, Claim, Decision, Holder, Level, decide
from serve_app.ray_seam import listen_on_node_address


class _Bucket:
    def __init__(self, limit: int, now: int) -> None:
        self.limit, self.units, self.at = limit, limit * UNITS, now

    def refill(self, now: int) -> None:
        elapsed = max(0, now - self.at)
        self.at = now
        self.units = min(self.limit * UNITS, self.units + elapsed * self.limit)

    def add(self, amount: int, now: int) -> None:
        self.refill(now)
        self.units = min(self.limit * UNITS, self.units + amount * UNITS)

    def level(self) -> Level:
        return Level(self.limit, self.units)


class _Hold:
    """What one request has charged."""

    def __init__(self) -> None:
        self.requests = self.tokens = self.expires = 0


class _Account:
    """The buckets and open requests of one key; the request whose hold ends first comes first."""

    def __init__(self) -> None:
        self.requests: _Bucket | None = None
        self.tokens: _Bucket | None = None
        self.holds: dict[str, _Hold] = {}

    def drop_expired(self, now: int) -> None:
        while self.holds and (first := next(iter(self.holds.items())))[1].expires <= now:
            del self.holds[first[0]]

    def keep(self, request: str, hold: _Hold, expires: int) -> None:
        self.holds.pop(request, None)
        hold.expires = expires
        self.holds[request] = hold


class MemoryLimiter:
    """A `Limiter` over dictionaries. No method gives way to another task, so each is atomic in an event loop."""

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`lease_s`: seconds that a request's hold lasts unless renewed; `clock`: seconds."""
        listen_on_node_address()  # as the limiter's actor
        self._lease_ms = round(lease_s * 1000)
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    async def reserve(self, claim: Claim) -> Decision:
        key, request = claim.holder
        account, now = self._account(key)
        account.requests = _refilled(account.requests, claim.quota.requests_per_minute, now)
        account.tokens = _refilled(account.tokens, claim.quota.tokens_per_minute, now)
        slots = len(account.holds) - (request in account.holds)
        refusal = decide(claim, _level(account.requests), _level(account.tokens), slots)
        hold = account.holds.get(request)
        if refusal is None:
            hold = hold or _Hold()
            account.keep(request, hold, now + self._lease_ms)
            if account.requests:
                account.requests.add(-claim.requests, now)
                hold.requests += claim.requests
            if account.tokens:
                account.tokens.add(-claim.tokens, now)
                hold.tokens += claim.tokens
        elif hold:
            if account.requests:
                account.requests.add(hold.requests, now)
            hold.requests = 0
            if not hold.tokens:
                del account.holds[request]
        return Decision(refusal, _level(account.requests), _level(account.tokens))

    async def settle(self, holder: Holder, used: int) -> None:
        account, now = self._account(holder.key)
        hold = account.holds.pop(holder.request, None)
        if hold and account.tokens:
            account.tokens.add(hold.tokens - used, now)

    async def release(self, holder: Holder) -> None:
        account, now = self._account(holder.key)
        hold = account.holds.pop(holder.request, None)
        if hold and account.requests:
            account.requests.add(hold.requests, now)
        if hold and account.tokens:
            account.tokens.add(hold.tokens, now)

    async def renew(self, holders: Sequence[Holder]) -> None:
        for holder in holders:
            account, now = self._account(holder.key)
            if hold := account.holds.get(holder.request):
                account.keep(holder.request, hold, now + self._lease_ms)

    def _account(self, key: str) -> tuple[_Account, int]:
        now = round(self._clock() * 1000)
        account = self._accounts.setdefault(key, _Account())
        account.drop_expired(now)
        return account, now


def _refilled(bucket: _Bucket | None, limit: int | None, now: int) -> _Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return _Bucket(limit, now)
    bucket.refill(now)
    full = bucket.units == bucket.limit * UNITS
    bucket.limit = limit
    bucket.units = limit * UNITS if full else min(limit * UNITS, bucket.units)
    return bucket


def _level(bucket: _Bucket | None) -> Level | None:
    return bucket.level() if bucket else None
