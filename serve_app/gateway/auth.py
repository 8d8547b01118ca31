"""The bearer key: compared as digests in constant time, so that neither content nor length leaks."""

import hashlib
import hmac

from serve_app.gateway.errors import Headers, Unauthorized


class BearerKey:
    """The service's one key; with none set, every request passes (loopback only, see app.py)."""

    def __init__(self, key: str | None) -> None:
        self._digest = _digest(key.encode()) if key else None

    def require(self, headers: Headers) -> None:
        """Raise Unauthorized unless the request carries the key.

        It may come as `Authorization: Bearer <key>`, or as `x-api-key`, which Anthropic's clients send.
        """
        if self._digest is None:
            return
        if not hmac.compare_digest(_digest(_presented(headers)), self._digest):
            raise Unauthorized


def _presented(headers: Headers) -> bytes:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else b""
    return next((value for name, value in headers if name == b"x-api-key"), b"")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
