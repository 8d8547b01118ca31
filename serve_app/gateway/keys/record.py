"""A key as the keys file holds it: its digests and its rights, never the key itself.

`cli/keys_file.py` holds the same form for `vllm-chat keys`.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from serve_app.settings import Closed

Tier = Literal["high", "normal", "low"]
Scheme = Literal["sha256", "hmac-sha256"]


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


Moment = Annotated[datetime, AfterValidator(_in_utc)]
Glob = Annotated[str, Field(min_length=1, max_length=128)]
Feature = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]


class Limits(Closed):
    """What a key may use; null: the service's default, and without one no limit."""

    requests_per_minute: PositiveInt | None = Field(default=None, le=10**9)
    """Requests a minute."""
    tokens_per_minute: PositiveInt | None = Field(default=None, le=10**9)
    """Prompt and output tokens a minute."""
    concurrent: PositiveInt | None = Field(default=None, le=10**6)
    """Requests at the same time."""
    max_tokens: PositiveInt | None = None
    """Output tokens of one answer, of which a request can have several."""
    context: PositiveInt | None = None
    """Prompt plus output tokens of one answer."""


class Secret(Closed):
    """One secret of a key, as a digest. A key has several while it is rotated."""

    digest: str = Field(pattern=r"^(hmac-)?sha256:[0-9a-f]{64}$", repr=False)
    """`sha256:<hex>` of the whole key text, or `hmac-sha256:<hex>` of it under the pepper."""
    created: Moment
    """When it was made."""
    expires: Moment | None = None
    """When it stops working; null: with the key."""


class KeyRecord(Closed):
    """One key. A moment without a time zone is UTC."""

    id: str = Field(pattern=r"^[a-z0-9]{8,12}$")
    """Public name of the key: in its text, in logs and in the usage ledger."""
    name: str = Field(min_length=1, max_length=128)
    """Whose key it is, for people."""
    secrets: tuple[Secret, ...] = Field(min_length=1)
    """The secrets that open it."""
    created: Moment
    """When it was made."""
    expires: Moment | None = None
    """When it stops working; null: never."""
    revoked: bool | Moment = False
    """Since when it is revoked, or true."""
    models: tuple[Glob, ...] = Field(default=("*",), min_length=1)
    """Globs over model ids, case-sensitive."""
    endpoints: tuple[Glob, ...] = ()
    """Globs over route paths (`/v1/chat/*`) or over what follows `/v1/` or `/api/` (`chat*`); empty: all."""
    features: tuple[Feature, ...] = ()
    """What the key may beyond the rest, such as `benchmark`."""
    limits: Limits = Limits()
    """What the key may use."""
    tier: Tier = "normal"
    """Who goes first when requests wait."""
    cache_group: str | None = Field(default=None, min_length=1, max_length=64)
    """Keys of one group share the prefix cache; null: the key alone."""
