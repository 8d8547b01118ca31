"""A key's text, `sk-vc-<id>-<secret>-<check>`, and the digest that is kept instead of it.

id      10 of [a-z0-9], a letter first; public, it stands in logs and reports
secret  256 random bits as 43 characters of URL-safe base64 (with `-` and `_`: read a key from both ends)
check   CRC-32 of all before the last `-`, as 6 digits of base 62, by which scanners know a key from look-alikes
"""

import hashlib
import hmac
import secrets
import string
import zlib

ID_LENGTH = 10
CHECK_LENGTH = 6
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


def new_id() -> str:
    """A random id. The letter first keeps YAML from reading a number."""
    rest = (secrets.choice(string.ascii_lowercase + string.digits) for _ in range(ID_LENGTH - 1))
    return secrets.choice(string.ascii_lowercase) + "".join(rest)


def new_key(key_id: str) -> str:
    """The text of a new key with that id."""
    text = f"sk-vc-{key_id}-{secrets.token_urlsafe(32)}"
    return f"{text}-{_check(text)}"


def digest(key: str, pepper: bytes) -> str:
    """What the keys file holds of a key: `hmac-sha256:<hex>` with a pepper, `sha256:<hex>` without."""
    if pepper:
        return f"hmac-sha256:{hmac.digest(pepper, key.encode(), 'sha256').hex()}"
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def _check(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(CHECK_LENGTH):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits
