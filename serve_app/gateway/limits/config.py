"""Settings of the limits."""

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, SecretStr, field_validator
from redis.asyncio import ConnectionPool

from serve_app.gateway.limits.limiter import Quota
from serve_app.settings import Closed, ConfigError, secret_variable

VARIABLE = "LIMITS_REDIS_URL"


class LimitsConfig(Closed):
    """What a key without limits of its own may use, and where the limits of all gateways are kept."""

    redis: SecretStr | None = None
    """URL of the Redis in which gateways share the limits: redis://, rediss:// or unix://; LIMITS_REDIS_URL wins."""
    requests_per_minute: PositiveInt | None = Field(default=None, le=10**9)
    """Requests a minute; the variable RATE_LIMIT_PER_MINUTE wins over it; null: no limit."""
    tokens_per_minute: PositiveInt | None = Field(default=None, le=10**9)
    """Prompt and output tokens a minute; null: no limit."""
    concurrent: PositiveInt | None = Field(default=None, le=10**6)
    """Requests at the same time; null: no limit."""
    lease_s: float = Field(default=30, ge=3, le=600)
    """Seconds after which the open requests of a gateway that died no longer count."""

    def quota(self, environment: Mapping[str, str] = os.environ) -> Quota:
        """What a key without limits of its own may use.

        Raises:
            ConfigError: RATE_LIMIT_PER_MINUTE is no whole number from 1 to 10**9.
        """
        text = environment.get("RATE_LIMIT_PER_MINUTE", "").strip()
        if not text:
            return Quota(self.requests_per_minute, self.tokens_per_minute, self.concurrent)
        if not text.isascii() or not text.isdigit() or not 1 <= int(text[:11]) <= 10**9:
            raise ConfigError("RATE_LIMIT_PER_MINUTE must be a whole number from 1 to 1000000000")
        return Quota(int(text), self.tokens_per_minute, self.concurrent)

    @field_validator("redis")
    @classmethod
    def _check(cls, url: SecretStr | None) -> SecretStr | None:
        return None if url is None else _checked(url.get_secret_value(), "it")

    def redis_url(self, environment: Mapping[str, str] = os.environ) -> SecretStr | None:
        """Where the shared Redis is; None: there is none.

        LIMITS_REDIS_URL, or the file that LIMITS_REDIS_URL_FILE names, wins over the settings.

        Raises:
            ConfigError: what is given is no Redis URL; the message holds nothing of it.
        """
        given = secret_variable(environment, VARIABLE)
        return self.redis if given is None else _checked(*given)


def _checked(text: str, source: str) -> SecretStr:
    try:
        url = urlsplit(text)
        place = url.path if url.scheme == "unix" else url.hostname and re.fullmatch(r"(/\d*)?", url.path)
        if not place:
            raise ValueError
        # It connects later; here it reads the whole URL.
        ConnectionPool.from_url(text).make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):
        raise ConfigError(
            f"{source} must be a URL such as redis://host:6379/0, rediss://host or unix:///path"
        ) from None
    return SecretStr(text)
