"""The keys that open the service: PROXY_API_KEY, and those of the keys file, followed while it changes."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic import Field

from serve_app.gateway.errors import BadRequest, Headers, Unauthorized
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.keys.failures import Failures
from serve_app.gateway.keys.key_set import KeySet
from serve_app.gateway.keys.source import Source
from serve_app.settings import Closed, ConfigError

logger = logging.getLogger("ray.serve")

SHORTEST_PEPPER = 32


class KeysConfig(Closed):
    """Where the keys are."""

    path: str | None = Field(default=None, min_length=1)
    """Keys file, or a directory of them; null: $KEYS_FILE, and without that there are none but PROXY_API_KEY."""
    pepper_file: str | None = Field(default=None, min_length=1)
    """File whose content (32 bytes or more) keys the digests; null: $KEY_PEPPER_FILE, else digests are plain."""
    poll_s: float = Field(default=0.5, gt=0, le=1)
    """Seconds between two looks for a change."""
    failures_per_minute: int = Field(default=120, ge=0)
    """Refused attempts of one client address before 401 turns into 429; 0: any number."""


class Keyring:
    """Tells from a request's headers who sent it."""

    def __init__(
        self,
        config: KeysConfig,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Load the keys. `clock` gives unix time.

        Raises:
            ConfigError: the keys file, the pepper or PROXY_API_KEY cannot be used.
        """
        path = config.path or environment.get("KEYS_FILE")
        pepper_file = config.pepper_file or environment.get("KEY_PEPPER_FILE")
        self._admin_key = _admin_key(environment)
        self._pepper = _pepper(Path(pepper_file)) if pepper_file else b""
        self._source = Source(Path(path)) if path else None
        self._anonymous = None if self._admin_key or path else Caller.unlimited("anonymous")
        self._poll_s = config.poll_s
        self._clock = clock
        self._failures = Failures(config.failures_per_minute)
        self.metrics = CollectorRegistry()
        """`vllm_chat_keys_*`, for the service's exposition."""
        self._errors = Counter(
            "vllm_chat_keys_reload_errors", "Changes of the keys that could not be taken.", registry=self.metrics
        )
        self._loaded = Gauge("vllm_chat_keys_loaded", "Keys in use, PROXY_API_KEY aside.", registry=self.metrics)
        self._broken = Gauge(
            "vllm_chat_keys_broken",
            "1 while the keys cannot be read and the last good ones count.",
            registry=self.metrics,
        )
        self.broken = False
        """Whether the keys cannot be read now, so that the last good ones count."""
        self._stamp = self._source.stamp() if self._source else None
        self._use(self._read())

    @property
    def open_to_all(self) -> bool:
        """Whether there is no key at all, so that every request passes. Right on a loopback address only."""
        return self._anonymous is not None

    def authenticate(self, headers: Headers, address: str = "") -> Caller:
        """Who sent a request with these headers.

        The key comes as `Authorization: Bearer <key>`, or as `x-api-key`, which Anthropic's clients send.
        `address` is the client's; empty: it is not known.

        Raises:
            Unauthorized: no key, or not one that opens the service now; it does not tell which.
            TooManyAttempts: the same, once too often from this address.
            BadRequest: a header is there twice.
        """
        presented = _presented(headers)
        if self._anonymous is not None:
            return self._anonymous
        now = self._clock()
        caller = self._keys.find(presented, now)
        if caller is None:
            self._failures.add(address, now)
            raise Unauthorized
        return caller

    async def run(self) -> None:
        """Take over every change of the keys within two polls. Runs until cancelled."""
        while self._source is not None:
            await asyncio.sleep(self._poll_s)
            stamp = await asyncio.to_thread(self._source.stamp)
            if stamp == self._stamp:
                continue
            outcome = await asyncio.to_thread(self._attempt)
            if await asyncio.to_thread(self._source.stamp) != stamp:
                continue  # read in the middle of a change: the next look sees the rest
            self._stamp = stamp
            if isinstance(outcome, KeySet):
                self._use(outcome)
            else:
                self._refuse(outcome)

    def _attempt(self) -> KeySet | str:
        """The keys as they are now, or what is wrong with them."""
        try:
            return self._read()
        except ConfigError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  the watch's boundary: no content may end it, or get into a log
            return f"the keys cannot be read ({type(error).__name__})"

    def _read(self) -> KeySet:
        return KeySet(self._source.read() if self._source else (), self._admin_key, self._pepper)

    def _use(self, keys: KeySet) -> None:
        self._keys = keys
        self.broken = False
        self._broken.set(0)
        self._loaded.set(keys.size)
        logger.info("keys in use: %d", keys.size)

    def _refuse(self, reason: str) -> None:
        self.broken = True
        self._broken.set(1)
        self._errors.inc()
        logger.error("%s; the last good keys stay in use", reason)


def _presented(headers: Headers) -> bytes:
    """The key that a request presents, empty for none."""
    authorization = [value for name, value in headers if name == b"authorization"]
    api_key = [value for name, value in headers if name == b"x-api-key"]
    if len(authorization) > 1 or len(api_key) > 1:
        twice = "Authorization" if len(authorization) > 1 else "x-api-key"
        raise BadRequest(f"The header {twice} must be there once.")
    if authorization:
        scheme, _, key = authorization[0].partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else b""
    return api_key[0].strip() if api_key else b""


def _admin_key(environment: Mapping[str, str]) -> str:
    given = environment.get("PROXY_API_KEY", "")
    if given and not given.strip():
        raise ConfigError("PROXY_API_KEY is blank: set a key, or leave it out")
    return given.strip()


def _pepper(file: Path) -> bytes:
    try:
        pepper = file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"pepper file {file}: {error.strerror}") from None
    if len(pepper) < SHORTEST_PEPPER:
        raise ConfigError(f"pepper file {file}: it holds {len(pepper)} bytes, and {SHORTEST_PEPPER} are the least")
    return pepper
