"""Which replica gets a request: the one that has its prefix cached, unless that has more than its share to do.

Rendezvous hashing gives each conversation an order of the replicas, the same in every gateway, in which a replica that
comes or goes changes little. The first in it whose load is within a bound of the mean gets the request.
Source: Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016, https://arxiv.org/abs/1608.01350.
"""

import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from types import NoneType
from typing import Any

from serve_app.fleet.prefix import SharedPrefixes, block_hashes
from serve_app.vllm_seam import EngineCoreRequest

# Load that a replica may have, as a multiple of the mean, and still get the requests whose prefix it has.
BOUND = 1.25
# Weight of the newest request in what is usual.
NEWEST = 0.1
USUAL_OUTPUT, USUAL_COST = 256.0, 512.0  # tokens, until some have been seen
# What a replica has said of its load counts for so long: one that has nothing to do says nothing.
FRESH_S = 2.0
# One that has not taken a request is asked for no other meanwhile: Serve may list it for seconds after its end.
AWAY_S = 1.0


def rank(loads: Mapping[str, float], cost: float, key: bytes | None, request_id: str) -> list[str]:
    """The replicas that a request may go to, best first.

    Args:
        loads: tokens in flight at each of them.
        cost: tokens of the request.
        key: what its prefix is routed by; None: it has none worth it.
        request_id: spreads requests without a key over replicas of equal load.
    """
    tie = request_id.encode()
    by_load = sorted(loads, key=lambda replica: (loads[replica], _score(tie, replica)))
    if key is None:
        return by_load
    bound = BOUND * (sum(loads.values()) + cost) / max(len(loads), 1)
    homes = sorted((each for each in loads if loads[each] <= bound), key=lambda replica: _score(key, replica))
    return homes + [replica for replica in by_load if loads[replica] > bound]


def _score(key: bytes, replica: str) -> bytes:
    return hashlib.blake2b(key + replica.encode(), digest_size=8).digest()


class Hint:
    """What the router is told of one attempt of a request, and where that went.

    It goes along with the Serve call as an argument, to the router in this process; a replica gets None in its place.
    """

    def __init__(self, balancer: "Balancer", request_id: str, key: bytes | None, cost: float) -> None:
        self.request_id = request_id
        self.key = key
        self.cost = cost
        """Tokens: the prompt's, and those expected of the answer."""
        self.replica: str | None = None
        self.over = False
        self.offer: Any = None
        """Serve's future of the replica that is to take it."""
        self._balancer = balancer

    def order(self, replicas: Sequence[str]) -> list[str]:
        """Those replicas that may get it, best first, which it is counted for from now on. Empty: none may now."""
        return self._balancer.order(self, replicas)

    def sent(self, replica: str) -> None:
        """This replica has taken it."""
        self._balancer.place(self, replica)

    def not_taken(self, replica: str | None) -> None:
        """This replica has refused it, or has died of it or before it came: the router should look elsewhere."""
        if replica is not None:
            self._balancer.avoid(replica)

    def end(self) -> None:
        """The attempt has ended, however: no replica is counted as having it any more."""
        self._balancer.end(self)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return NoneType, ()


class Balancer:
    """Balances the requests of one model over its replicas, as one gateway sees them.

    Serve's router may run in a thread of its own.
    """

    def __init__(self, suspects: Set[str] = frozenset()) -> None:
        """`suspects`: replicas that get no request, as it is whenever one is placed."""
        self._suspects = suspects
        self._prefixes = SharedPrefixes()
        self._tokens: defaultdict[str, float] = defaultdict(float)
        self._requests: defaultdict[str, int] = defaultdict(int)
        self._reported: dict[str, tuple[float, float]] = {}
        self._away: dict[str, float] = {}
        self._usual_output, self._usual_cost = USUAL_OUTPUT, USUAL_COST
        self._lock = threading.Lock()

    def hint(self, request: EngineCoreRequest) -> Hint:
        """For an attempt to run this request."""
        prompt = request.prompt_token_ids or ()
        adapter = request.lora_request.lora_name if request.lora_request else ""
        blocks = block_hashes(prompt, f"{request.cache_salt} {adapter}")
        most = request.sampling_params.max_tokens or 0 if request.sampling_params else 0
        cost = len(prompt) + min(most, self._usual_output)
        with self._lock:
            self._usual_cost += NEWEST * (cost - self._usual_cost)
            return Hint(self, request.request_id, self._prefixes.key(blocks), cost)

    def order(self, hint: Hint, replicas: Sequence[str]) -> list[str]:
        with self._lock:
            self._place(hint, None)
            now = time.monotonic()
            away = self._suspects | {replica for replica, until in self._away.items() if until > now}
            loads = {replica: self._load(replica) for replica in replicas if replica not in away}
            ranked = rank(loads, hint.cost, hint.key, hint.request_id)
            self._place(hint, ranked[0] if ranked else None)
        return ranked

    def place(self, hint: Hint, replica: str) -> None:
        """Count a request for this replica and no other."""
        with self._lock:
            self._place(hint, replica)

    def end(self, hint: Hint) -> None:
        with self._lock:
            self._place(hint, None)
            hint.over = True

    def avoid(self, replica: str) -> None:
        """Choose others for a moment."""
        with self._lock:
            now = time.monotonic()
            self._away = {name: until for name, until in self._away.items() if until > now} | {replica: now + AWAY_S}

    def learn(self, output: int) -> None:
        """Note how many tokens an answer had."""
        self._usual_output += NEWEST * (output - self._usual_output)

    def report(self, replica: str, requests: int) -> None:
        """Note how many requests a replica says that it has; those of other gateways count as usual ones."""
        with self._lock:
            now = time.monotonic()
            if replica not in self._reported:  # others may have gone
                self._reported = {name: each for name, each in self._reported.items() if each[1] > now}
            others = max(0, requests - self._requests.get(replica, 0))
            self._reported[replica] = (others * self._usual_cost, now + FRESH_S)

    def _load(self, replica: str) -> float:
        others, until = self._reported.get(replica, (0.0, 0.0))
        return self._tokens.get(replica, 0.0) + (others if time.monotonic() < until else 0.0)

    def _place(self, hint: Hint, replica: str | None) -> None:
        if hint.replica is not None:
            self._add(hint.replica, -hint.cost, -1)
        if replica is not None and not hint.over:
            self._add(replica, hint.cost, 1)
        hint.replica = None if hint.over else replica

    def _add(self, replica: str, tokens: float, requests: int) -> None:
        self._requests[replica] += requests
        self._tokens[replica] += tokens
        if not self._requests[replica]:
            # Replicas come and go; and sums of fractions do not always come back to zero.
            del self._requests[replica], self._tokens[replica]
