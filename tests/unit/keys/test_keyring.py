"""Who a request's headers say it is, and that all who are refused are refused alike."""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from serve_app.gateway.errors import BadRequest, GatewayError, Headers, InsufficientScope, TooManyAttempts, Unauthorized
from serve_app.gateway.keys import failures
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.keys.failures import Failures
from serve_app.gateway.keys.keyring import Keyring, KeysConfig
from serve_app.gateway.keys.record import KeyRecord, Limits
from serve_app.settings import ConfigError
from tests.unit.keys.files import CREATED, bearer, digest, keyring, record, write

KEY = "sk-vc-a1b2c3d4e5-" + "x" * 43 + "-0AbC12"
NONE = KeysConfig()


def at(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def refused(ring: Keyring, headers: Headers) -> GatewayError:
    with pytest.raises(Unauthorized) as caught:
        ring.authenticate(headers)
    return caught.value


def test_a_key_brings_all_that_its_record_says(tmp_path: Path) -> None:
    rights = {
        "models": ["llama-*"],
        "endpoints": ["/v1/chat/*"],
        "features": ["benchmark"],
        "limits": {
            "requests_per_minute": 60,
            "tokens_per_minute": 9000,
            "concurrent": 4,
            "max_tokens": 5,
            "context": 6,
        },
        "tier": "high",
        "cache_group": "team",
    }
    ring = keyring(write(tmp_path / "keys.yaml", record("a1b2c3d4e5", KEY, **rights)))
    assert ring.authenticate(bearer(KEY)) == Caller(
        id="a1b2c3d4e5",
        name="name of a1b2c3d4e5",
        models=("llama-*",),
        endpoints=("/v1/chat/*",),
        features=frozenset({"benchmark"}),
        limits=Limits(requests_per_minute=60, tokens_per_minute=9000, concurrent=4, max_tokens=5, context=6),
        tier="high",
        cache_group="team",
    )


def test_a_key_has_by_default_all_models_no_feature_and_a_cache_of_its_own(tmp_path: Path) -> None:
    caller = keyring(write(tmp_path / "keys.yaml", record("a1b2c3d4e5", KEY))).authenticate(bearer(KEY))
    assert (caller.models, caller.features, caller.tier) == (("*",), frozenset(), "normal")
    assert (caller.limits, caller.cache_group) == (Limits(), "a1b2c3d4e5")


def test_proxy_api_key_is_the_admin() -> None:
    ring = Keyring(NONE, {"PROXY_API_KEY": "secret\n"})
    caller = ring.authenticate(bearer("secret"))
    assert (caller.id, caller.features, caller.limits) == ("admin", frozenset({"admin", "benchmark"}), Limits())
    assert (caller.may_use("any"), ring.open_to_all) == (True, False)
    refused(ring, bearer("other"))


def test_proxy_api_key_works_beside_a_keys_file(tmp_path: Path) -> None:
    ring = keyring(write(tmp_path / "keys.yaml", record("a1b2c3d4e5", KEY)), PROXY_API_KEY="secret")
    assert [ring.authenticate(bearer(key)).id for key in ("secret", KEY)] == ["admin", "a1b2c3d4e5"]


def test_without_any_key_every_request_passes() -> None:
    ring = Keyring(NONE, {"PROXY_API_KEY": "", "KEYS_FILE": ""})
    caller = ring.authenticate([])
    assert ring.open_to_all
    assert (caller.id, caller.features) == ("anonymous", frozenset({"admin", "benchmark"}))


def test_a_keys_file_without_keys_opens_to_nobody(tmp_path: Path) -> None:
    ring = Keyring(NONE, {"KEYS_FILE": str(write(tmp_path / "keys.yaml"))})
    assert not ring.open_to_all
    refused(ring, [])
    refused(ring, bearer(KEY))


def test_a_blank_proxy_api_key_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="PROXY_API_KEY is blank"):
        Keyring(NONE, {"PROXY_API_KEY": " "})


ACCEPTED: list[Headers] = [
    [(b"authorization", b"Bearer KEY")],
    [(b"authorization", b"bearer  KEY ")],
    [(b"x-api-key", b"KEY")],
    [(b"authorization", b"Bearer KEY"), (b"x-api-key", b"other")],
]
REFUSED: list[Headers] = [
    [],
    [(b"authorization", b"Bearer")],
    [(b"authorization", b"Bearer ")],
    [(b"authorization", b"KEY")],
    [(b"authorization", b"Basic KEY")],
    [(b"authorization", b"Bearer KEY, Bearer KEY")],
    [(b"authorization", b"Bearer \xff\x00")],
    [(b"authorization", b"Bearer other"), (b"x-api-key", b"KEY")],
    [(b"api-key", b"KEY")],
]


def with_key(headers: Headers) -> Headers:
    return [(name, value.replace(b"KEY", KEY.encode())) for name, value in headers]


@pytest.mark.parametrize("headers", ACCEPTED)
def test_ways_to_send_a_key(tmp_path: Path, headers: Headers) -> None:
    ring = keyring(write(tmp_path / "keys.yaml", record("a1b2c3d4e5", KEY)))
    assert ring.authenticate(with_key(headers)).id == "a1b2c3d4e5"


@pytest.mark.parametrize("headers", REFUSED)
def test_what_is_no_key(tmp_path: Path, headers: Headers) -> None:
    ring = keyring(write(tmp_path / "keys.yaml", record("a1b2c3d4e5", KEY)))
    refused(ring, with_key(headers))


@pytest.mark.parametrize(("name", "shown"), [(b"authorization", "Authorization"), (b"x-api-key", "x-api-key")])
def test_a_header_that_is_there_twice_is_a_bad_request(tmp_path: Path, name: bytes, shown: str) -> None:
    ring = keyring(write(tmp_path / "keys.yaml", record("a1b2c3d4e5", KEY)))
    with pytest.raises(BadRequest, match=f"The header {shown} must be there once"):
        ring.authenticate([(name, f"Bearer {KEY}".encode())] * 2)


LIVE = "sk-vc-live000000-" + "l" * 43 + "-000000"
EXPIRED = "sk-vc-expired000-" + "e" * 43 + "-000000"
REVOKED = "sk-vc-revoked000-" + "r" * 43 + "-000000"
SINCE = "sk-vc-since00000-" + "s" * 43 + "-000000"
CASES = {
    "none": "",
    "malformed": "sk-nothing",
    "unknown id": LIVE.replace("live", "dead"),
    "wrong secret": LIVE.replace("l" * 43, "m" * 43),
    "wrong check": LIVE.replace("-000000", "-000001"),
    "expired": EXPIRED,
    "revoked": REVOKED,
    "revoked since": SINCE,
}


@pytest.fixture
def mixed(tmp_path: Path) -> Keyring:
    return keyring(
        write(
            tmp_path / "keys.yaml",
            record("live000000", LIVE),
            record("expired000", EXPIRED, expires="2026-01-02T00:00:00Z"),
            record("revoked000", REVOKED, revoked=True),
            record("since00000", SINCE, revoked="2999-01-01T00:00:00Z"),
        )
    )


def test_all_who_are_refused_get_the_same_answer_for_the_same_work(
    mixed: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            work.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(hashlib, "sha256", counted("digest", hashlib.sha256))
    monkeypatch.setattr(hmac, "compare_digest", counted("compare", hmac.compare_digest))
    answers = set()
    for key in CASES.values():
        work.clear()
        error = refused(mixed, bearer(key))
        answers.add((error.status, error.type, error.code, str(error), error.param, tuple(error.headers)))
        assert work == ["digest", "compare"]
    assert len(answers) == 1
    work.clear()
    assert mixed.authenticate(bearer(LIVE)).id == "live000000"
    assert work == ["digest", "compare"]


def test_a_key_works_until_it_expires(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.yaml", record("a1b2c3d4e5", KEY, expires="1970-01-01T00:16:40Z"))
    config = KeysConfig(path=str(path))
    assert Keyring(config, {}, at(999.9)).authenticate(bearer(KEY)).id == "a1b2c3d4e5"
    refused(Keyring(config, {}, at(1000)), bearer(KEY))


def test_moments_without_a_zone_are_utc(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"id: a1b2c3d4e5\nname: n\ncreated: 2026-01-01\nexpires: 2026-01-02\n"
        f"secrets: [{{digest: {digest(KEY)!r}, created: 2026-01-01 10:00:00}}]\n"
    )
    config, midnight = KeysConfig(path=str(path)), 1767312000
    assert Keyring(config, {}, at(midnight - 1)).authenticate(bearer(KEY)).id == "a1b2c3d4e5"
    refused(Keyring(config, {}, at(midnight)), bearer(KEY))


def test_both_secrets_of_a_rotated_key_work_while_they_overlap(tmp_path: Path) -> None:
    secrets = [
        {"digest": digest("new"), "created": CREATED},
        {"digest": digest("old"), "created": CREATED, "expires": "1970-01-01T00:16:40Z"},
    ]
    path = write(tmp_path / "keys.yaml", record("a1b2c3d4e5", "", secrets=secrets))
    during = Keyring(KeysConfig(path=str(path)), {}, at(999))
    assert [during.authenticate(bearer(key)).id for key in ("new", "old")] == ["a1b2c3d4e5"] * 2
    after = Keyring(KeysConfig(path=str(path)), {}, at(1000))
    assert after.authenticate(bearer("new")).id == "a1b2c3d4e5"
    refused(after, bearer("old"))


def test_the_digest_of_nothing_opens_nothing(tmp_path: Path) -> None:
    ring = keyring(write(tmp_path / "keys.yaml", record("a1b2c3d4e5", "")))
    refused(ring, [])
    refused(ring, bearer(""))


def test_models_in_scope_are_globs() -> None:
    caller = Caller("i", "n", models=("llama-*", "qwen2.5-?b"))
    names = ("llama-3.1-8b", "qwen2.5-7b", "LLAMA-3", "qwen2.5-72b", "my-llama-3", "")
    assert [caller.may_use(name) for name in names] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("endpoints", "allowed"),
    [
        ((), {"/v1/chat/completions", "/v1/models", "/api/chat", "/tokenize"}),
        (("*",), {"/v1/chat/completions", "/v1/models", "/api/chat", "/tokenize"}),
        (("/v1/chat/*",), {"/v1/chat/completions"}),
        (("chat*", "models"), {"/v1/chat/completions", "/v1/models", "/api/chat"}),
        (("tokenize",), {"/tokenize"}),
        (("Chat*", "completions"), set()),
    ],
)
def test_endpoints_in_scope_are_globs(endpoints: tuple[str, ...], allowed: set[str]) -> None:
    caller = Caller("i", "n", endpoints=endpoints)
    for path in ("/v1/chat/completions", "/v1/models", "/api/chat", "/tokenize"):
        if path in allowed:
            caller.require_endpoint(path)
        else:
            with pytest.raises(InsufficientScope) as caught:
                caller.require_endpoint(path)
            assert (caught.value.status, caught.value.code) == (403, "insufficient_scope")
            assert str(caught.value) == f"This key may not use {path}."


def test_guessing_is_told_to_slow_down_and_locks_nobody_out(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.yaml", record("a1b2c3d4e5", KEY))
    now = [1000.0]
    ring = Keyring(KeysConfig(path=str(path), failures_per_minute=2), {}, lambda: now[0])
    for _ in range(2):
        with pytest.raises(Unauthorized):
            ring.authenticate(bearer("guess"), "10.0.0.1")
    now[0] += 20.5
    with pytest.raises(TooManyAttempts) as caught:
        ring.authenticate(bearer("guess"), "10.0.0.1")
    assert (caught.value.status, caught.value.headers) == (
        429,
        [(b"retry-after", b"40"), (b"retry-after-ms", b"40000"), (b"x-should-retry", b"false")],
    )
    assert ring.authenticate(bearer(KEY), "10.0.0.1").id == "a1b2c3d4e5"
    for address in ("10.0.0.2", "", "", ""):
        with pytest.raises(Unauthorized):
            ring.authenticate(bearer("guess"), address)
    now[0] += 39.5
    with pytest.raises(Unauthorized):
        ring.authenticate(bearer("guess"), "10.0.0.1")


def attempts(counted: Failures, addresses: Iterable[str]) -> list[bool]:
    """Of one failure from each address in turn, which are told to slow down."""

    def slowed(address: str) -> bool:
        try:
            counted.add(address, 1000.0)
        except TooManyAttempts:
            return True
        return False

    return [slowed(address) for address in addresses]


@pytest.mark.parametrize(
    ("addresses", "slowed"),
    [
        (["10.0.0.1", "10.0.0.2", "10.0.0.1"], [False, False, True]),
        (["2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"], [False, True, False]),
        (["::ffff:10.0.0.1", "10.0.0.1", "::ffff:10.0.0.2"], [False, True, False]),
        (["unknown", "a forged one"], [False, True]),
    ],
    ids=["IPv4", "IPv6 by its /64", "IPv4 in IPv6", "no address"],
)
def test_what_counts_as_one_address(addresses: list[str], slowed: list[bool]) -> None:
    assert attempts(Failures(1), addresses) == slowed


def test_who_has_very_many_addresses_is_slowed_down_too_and_takes_a_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failures, "MOST_ADDRESSES", 2)
    counted = Failures(1)
    assert attempts(counted, [f"10.0.0.{number}" for number in range(5)]) == [False, False, False, True, True]
    assert attempts(counted, ["10.0.0.0"]) == [True]
    counted.add("10.0.0.9", 1060.0)  # the next minute


def test_nothing_of_a_key_is_shown_by_what_stands_for_it(tmp_path: Path) -> None:
    entry = record("a1b2c3d4e5", KEY)
    ring = keyring(write(tmp_path / "keys.yaml", entry), PROXY_API_KEY="admin-secret")
    answer = refused(ring, bearer(KEY + "0"))
    things = [ring, ring.authenticate(bearer(KEY)), answer, answer.headers, KeyRecord.model_validate(entry)]
    shown = " ".join(map(repr, things))
    assert "a1b2c3d4e5" in shown
    assert [text for text in ("x" * 43, "admin-secret", digest(KEY)[7:]) if text in shown] == []
