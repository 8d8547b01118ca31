"""All keys of one moment, found by the digest of what a request presents."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.keys.record import KeyRecord, Scheme, Secret
from serve_app.settings import ConfigError


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: str = field(repr=False)
    caller: Caller | None
    ends: float
    """Unix time from which on it opens nothing."""


class KeySet:
    """An immutable set of keys.

    The table is keyed by digest of the whole key text, so an unknown id, a wrong secret, a wrong check and garbage
    are one and the same miss, after the same work.
    """

    def __init__(self, records: Iterable[KeyRecord], admin_key: str, pepper: bytes) -> None:
        """Raises ConfigError if two keys share an id or a secret, or a digest needs a pepper and there is none."""
        self._pepper = pepper
        self._schemes: list[Scheme] = ["hmac-sha256" if pepper else "sha256"]
        self._entries: dict[str, _Entry] = {}
        self._nobody = _Entry(secrets.token_hex(32), None, -inf)
        ids: set[str] = set()
        for record in records:
            if record.id in ids:
                raise ConfigError(f"key {record.id}: two keys have this id")
            ids.add(record.id)
            for secret in record.secrets:
                self._add(record, secret)
        if admin_key:
            digest = self._digest(self._schemes[0], admin_key.encode())
            self._entries[digest] = _Entry(digest, Caller.unlimited("admin"), inf)
        self.size = len(ids)

    def find(self, presented: bytes, now: float) -> Caller | None:
        """Whose key this is, None if nobody's or no longer."""
        found = self._nobody
        for scheme in self._schemes:  # one, unless a pepper came after the first keys
            digest = self._digest(scheme, presented)
            entry = self._entries.get(digest, self._nobody)
            found = entry if hmac.compare_digest(digest, entry.digest) else found
        return found.caller if presented and now < found.ends else None

    def _add(self, record: KeyRecord, secret: Secret) -> None:
        scheme: Scheme = "hmac-sha256" if secret.digest.startswith("hmac-") else "sha256"
        if scheme == "hmac-sha256" and not self._pepper:
            raise ConfigError(f"key {record.id}: its digest needs the pepper, and KEY_PEPPER_FILE is not set")
        if scheme not in self._schemes:
            self._schemes.append(scheme)
        if secret.digest in self._entries:
            raise ConfigError(f"key {record.id}: another secret has the same digest")
        ends = min((moment.timestamp() for moment in (record.expires, secret.expires) if moment), default=inf)
        self._entries[secret.digest] = _Entry(secret.digest, Caller.of(record), -inf if record.revoked else ends)

    def _digest(self, scheme: Scheme, key: bytes) -> str:
        if scheme == "hmac-sha256":
            return f"{scheme}:{hmac.digest(self._pepper, key, 'sha256').hex()}"
        return f"{scheme}:{hashlib.sha256(key).hexdigest()}"
