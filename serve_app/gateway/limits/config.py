"""Settings of the limits."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, PositiveInt, SecretStr

from serve_app.gateway.limits.limiter import Quota
from serve_app.settings import Closed, ConfigError

SCHEMES = ("redis://", "rediss://", "unix://")


class LimitsConfig(Closed):
    """What a key without limits of its own may use, and where the limits of all gateways are kept."""

    redis: Path | None = None
    """A file that holds the URL of the Redis that gateways share; the variable LIMITS_REDIS_URL wins over it."""
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

    def redis_url(self, environment: Mapping[str, str] = os.environ) -> SecretStr | None:
        """Where the shared Redis is; None: there is none.

        Raises:
            ConfigError: the file cannot be read, or what it holds is no Redis URL.
        """
        url, source = environment.get("LIMITS_REDIS_URL", "").strip(), "LIMITS_REDIS_URL"
        if not url and self.redis is not None:
            source = f"limits.redis: {self.redis}"
            try:
                url = self.redis.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{source} cannot be read ({type(error).__name__})") from error
        elif not url:
            return None
        if not url.startswith(SCHEMES):
            raise ConfigError(f"{source} must hold a URL that begins with {', '.join(SCHEMES)}")
        return SecretStr(url)
