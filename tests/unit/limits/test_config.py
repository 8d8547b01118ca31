"""Settings of the limits, from the file, the environment and a secret file."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serve_app.config import ServiceConfig
from serve_app.gateway.config import GatewayConfig, check_gateway
from serve_app.gateway.limits.config import LimitsConfig
from serve_app.gateway.limits.limiter import Quota
from serve_app.settings import ConfigError, describe_errors


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


WITH_PASSWORD = "rediss://:hush@redis:6379/1"


@pytest.mark.parametrize(
    "url",
    ["redis://host", "redis://user:hush@host:6380/2", WITH_PASSWORD, "unix:///run/redis.sock?db=1", "redis://[::1]/"],
)
def test_a_redis_url_is_taken_and_never_shown(url: str) -> None:
    config = LimitsConfig.model_validate({"redis": url})
    given = config.redis_url({})
    assert given is not None
    assert given.get_secret_value() == url
    assert "hush" not in f"{config!r} {config} {given!r} {config.model_dump()} {config.model_dump_json()}"


def test_the_environment_or_a_file_that_it_names_goes_before_the_settings(tmp_path: Path) -> None:
    config, file = LimitsConfig.model_validate({"redis": "redis://settings"}), tmp_path / "url"
    file.write_text(f"{WITH_PASSWORD}\n")
    for environment, expected in (
        ({"LIMITS_REDIS_URL": " "}, "redis://settings"),
        ({"LIMITS_REDIS_URL": "redis://other"}, "redis://other"),
        ({"LIMITS_REDIS_URL_FILE": str(file)}, WITH_PASSWORD),
    ):
        given = config.redis_url(environment)
        assert given is not None
        assert given.get_secret_value() == expected


WRONG = [
    "hush",
    "",
    "http://:hush@redis",
    "redis://",
    "redis:///0",
    "redis:/hush",
    "/run/secrets/hush",
    "unix://",
    "redis://:hush@redis:port",
    "redis://:hush@redis:99999",
    "redis://:hush@redis/hush",
    "redis://:hush@redis?hush=1",
    "redis://:hush@redis?socket_timeout=hush",
    "redis://[hush",
]


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_url_is_refused_by_name_and_never_shown(tmp_path: Path, url: str) -> None:
    says = "must be a URL such as redis://host:6379/0, rediss://host or unix:///path"
    with pytest.raises(ValidationError) as refused:
        ServiceConfig.model_validate({"gateway": {"limits": {"redis": url}}})
    assert describe_errors(refused.value) == f"gateway.limits.redis: it {says}"
    assert "hush" not in str(refused.value)
    file = tmp_path / "url"
    file.write_text(url or "-")
    for name, text in (("LIMITS_REDIS_URL", url or "-"), ("LIMITS_REDIS_URL_FILE", str(file))):
        with pytest.raises(ConfigError) as wrong:
            check_gateway(GatewayConfig(), {name: text, "PROXY_API_KEY": "key"})
        assert str(wrong.value) == f"{name} {says}"
        assert wrong.value.__cause__ is None


def test_settings_around_a_url_that_are_wrong_do_not_show_it() -> None:
    for limits in ({"redis": WITH_PASSWORD, "rediss": WITH_PASSWORD}, WITH_PASSWORD, {"redis": [WITH_PASSWORD]}):
        with pytest.raises(ValidationError) as refused:
            ServiceConfig.model_validate({"gateway": {"limits": limits}})
        assert "hush" not in str(refused.value)


def test_a_variable_and_its_file_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LIMITS_REDIS_URL and LIMITS_REDIS_URL_FILE are both set: choose one"):
        LimitsConfig().redis_url({"LIMITS_REDIS_URL": "redis://a", "LIMITS_REDIS_URL_FILE": str(tmp_path)})
    with pytest.raises(ConfigError, match="LIMITS_REDIS_URL_FILE cannot be read: Is a directory"):
        LimitsConfig().redis_url({"LIMITS_REDIS_URL_FILE": str(tmp_path)})
