"""Counts failed attempts by client address, so that guessing keys gets told to slow down."""

import ipaddress
import math
from collections import Counter

from serve_app.gateway.errors import TooManyAttempts

WINDOW_S = 60.0
MOST_ADDRESSES = 10_000
OTHERS = "others"


class Failures:
    """Failed attempts of the current minute. Right keys are never counted, and never refused."""

    def __init__(self, limit: int) -> None:
        """`limit` failures a minute and address; 0: any number."""
        self._limit = limit
        self._counts: Counter[str] = Counter()
        self._ends = 0.0

    def add(self, address: str, now: float) -> None:
        """Count one failure at `now`, in seconds; raise TooManyAttempts when it is over the limit.

        Beyond `MOST_ADDRESSES` a minute all further ones count as one.
        """
        if not self._limit or not address:
            return
        if not self._ends - WINDOW_S <= now < self._ends:
            self._counts.clear()
            self._ends = now + WINDOW_S
        source = _source(address)
        if source not in self._counts and len(self._counts) >= MOST_ADDRESSES:
            source = OTHERS
        self._counts[source] += 1
        if self._counts[source] > self._limit:
            raise TooManyAttempts(math.ceil(self._ends - now))


def _source(address: str) -> str:
    """An address, or of IPv6 its /64: the least that one client has to choose from."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return OTHERS
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.ip_network((int(ip), 64), strict=False))
