"""Settings of the limits, from the file, the environment and a secret file."""

from pathlib import Path

import pytest

from serve_app.gateway.limits.config import LimitsConfig
from serve_app.gateway.limits.limiter import Quota
from serve_app.settings import ConfigError


def test_without_settings_there_are_no_limits() -> None:
    config = LimitsConfig()
    assert (config.quota({}), config.redis_url({})) == (Quota(None, None, None), None)


def test_the_environment_sets_the_requests_of_a_minute() -> None:
    config = LimitsConfig(requests_per_minute=5, tokens_per_minute=1000, concurrent=2)
    assert config.quota({"RATE_LIMIT_PER_MINUTE": ""}) == Quota(5, 1000, 2)
    assert config.quota({"RATE_LIMIT_PER_MINUTE": " 60 "}) == Quota(60, 1000, 2)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "1000000001", "٣"])
def test_a_wrong_number_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="RATE_LIMIT_PER_MINUTE must be a whole number from 1 to 1000000000"):
        LimitsConfig().quota({"RATE_LIMIT_PER_MINUTE": text})


def test_the_url_of_redis_comes_from_a_file_or_the_environment_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "redis_url"
    file.write_text("rediss://:hush@redis:6379/1\n")
    config = LimitsConfig(redis=file)
    url = config.redis_url({})
    assert url is not None
    assert url.get_secret_value() == "rediss://:hush@redis:6379/1"
    assert "hush" not in f"{url} {url!r} {config!r}"
    other = config.redis_url({"LIMITS_REDIS_URL": "redis://other"})
    assert other is not None
    assert other.get_secret_value() == "redis://other"


def test_a_wrong_url_is_refused_without_being_shown(tmp_path: Path) -> None:
    file = tmp_path / "redis_url"
    with pytest.raises(ConfigError, match=r"limits.redis: .*redis_url cannot be read \(FileNotFoundError\)"):
        LimitsConfig(redis=file).redis_url({})
    file.write_text("hush")
    with pytest.raises(
        ConfigError, match=r"limits.redis: .*redis_url must hold a URL that begins with redis://"
    ) as error:
        LimitsConfig(redis=file).redis_url({})
    assert "hush" not in str(error.value)
