"""The limits as one would write them down: fractions, every bucket brought up to date at every step."""

import math
from fractions import Fraction

from serve_app.gateway.limits.limiter import Quota

Buckets = dict[str, tuple[int, Fraction]]


class Hold:
    def __init__(self) -> None:
        self.charged = {"requests": 0, "tokens": 0}
        self.ends = Fraction(0)


class Key:
    """A key's quota, its buckets (limit and level) and its open requests."""

    def __init__(self) -> None:
        self.buckets: Buckets = {}
        self.holds: dict[str, Hold] = {}


class Model:
    def __init__(self, lease_s: int) -> None:
        self.now, self.lease_s = Fraction(0), lease_s
        self.keys: dict[str, Key] = {}

    def advance(self, ms: int) -> None:
        self.now += Fraction(ms, 1000)
        for key in self.keys.values():
            key.holds = {request: hold for request, hold in key.holds.items() if hold.ends > self.now}
            for name, (limit, level) in key.buckets.items():
                key.buckets[name] = (limit, min(Fraction(limit), level + Fraction(ms * limit, 60_000)))

    def reserve(self, key_id: str, request: str, quota: Quota, costs: dict[str, int]) -> tuple[object, ...]:
        """What the decision must say: the limit that refused, its wait, and each bucket's level and reset."""
        key = self.keys.setdefault(key_id, Key())
        self._apply(key, quota)
        waits: dict[str, float] = {}
        for name, (limit, level) in key.buckets.items():
            if costs[name] and level < costs[name]:
                needed = (costs[name] - level) * 60_000 / limit
                waits[name] = math.inf if costs[name] > limit else math.ceil(needed)
        others = len(key.holds.keys() - {request})
        if quota.concurrent is not None and others >= quota.concurrent:
            waits["concurrent"] = 1000
        hold = key.holds.get(request)
        if not waits:
            hold = key.holds.setdefault(request, Hold())
            hold.ends = self.now + self.lease_s
            for name in key.buckets:
                self._add(key, name, -costs[name])
                hold.charged[name] += costs[name]
        elif hold:
            self._add(key, "requests", hold.charged["requests"])
            hold.charged["requests"] = 0
            if hold.charged["tokens"] == 0:
                del key.holds[request]
        worst = max(waits.values(), default=None)
        refused = next((name for name, wait in waits.items() if wait == worst), None)
        return refused, worst, self._seen(key, "requests"), self._seen(key, "tokens")

    def settle(self, key_id: str, request: str, used: int) -> None:
        if hold := self._end(key_id, request):
            self._add(self.keys[key_id], "tokens", hold.charged["tokens"] - used)

    def release(self, key_id: str, request: str) -> None:
        if hold := self._end(key_id, request):
            for name, charged in hold.charged.items():
                self._add(self.keys[key_id], name, charged)

    def renew(self, key_id: str, request: str) -> None:
        if key_id in self.keys and (hold := self.keys[key_id].holds.get(request)):
            hold.ends = self.now + self.lease_s

    def _end(self, key_id: str, request: str) -> Hold | None:
        return self.keys[key_id].holds.pop(request, None) if key_id in self.keys else None

    @staticmethod
    def _apply(key: Key, quota: Quota) -> None:
        for name, limit in (("requests", quota.requests_per_minute), ("tokens", quota.tokens_per_minute)):
            if limit is None:
                key.buckets.pop(name, None)
            else:
                before, level = key.buckets.get(name, (limit, Fraction(limit)))
                key.buckets[name] = (limit, Fraction(limit) if level == before else min(Fraction(limit), level))

    @staticmethod
    def _add(key: Key, name: str, amount: int) -> None:
        if name in key.buckets:
            limit, level = key.buckets[name]
            key.buckets[name] = (limit, min(Fraction(limit), level + amount))

    @staticmethod
    def _seen(key: Key, name: str) -> tuple[int, int, int] | None:
        if name not in key.buckets:
            return None
        limit, level = key.buckets[name]
        return limit, math.floor(level), math.ceil((limit - level) * 60_000 / limit)
