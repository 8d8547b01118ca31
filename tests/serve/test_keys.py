"""Keys that come and go while the service runs, as an operator's commands change the keys file."""

import re
import subprocess
import sys
from typing import Any

import httpx

from tests.service import Service, wait_for

SECONDS = 2
"""In which a change counts."""


def keys_command(service: Service, *arguments: str) -> str:
    """What `vllm-chat keys` prints."""
    command = [sys.executable, "-m", "cli", "keys", *arguments, "--file", str(service.keys_file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def id_of(key: str) -> str:
    return key.split("-")[2]


def broken(service: Service) -> bool:
    found = re.search(r"^vllm_chat_keys_broken (\S+)$", service.http.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1]) == 1


def test_a_key_counts_soon_after_it_is_made_and_no_longer_soon_after_it_is_revoked(service: Service) -> None:
    key = service.new_key("short-lived")
    keys_command(service, "revoke", id_of(key))
    wait_for(lambda: not service.takes(key), "the revocation", SECONDS)
    assert service.takes(service.keys["plain"])


def test_a_rotated_key_has_its_new_secret_alone(service: Service) -> None:
    old = service.new_key("rotated")
    new = keys_command(service, "rotate", id_of(old), "--overlap", "0h")
    wait_for(lambda: service.takes(new) and not service.takes(old), "the rotation", SECONDS)


def test_within_the_overlap_both_secrets_open(service: Service) -> None:
    old = service.new_key("overlapping")
    new = keys_command(service, "rotate", id_of(old), "--overlap", "1h")
    wait_for(lambda: service.takes(new), "the rotation", SECONDS)
    assert service.takes(old)


def test_a_broken_file_leaves_the_last_good_keys_and_is_reported(service: Service) -> None:
    good = service.keys_file.read_bytes()
    try:
        service.keys_file.write_bytes(b"keys: [")
        wait_for(lambda: broken(service), "the report of the broken file", SECONDS)
        assert service.takes(service.keys["plain"])
    finally:
        service.keys_file.write_bytes(good)
    wait_for(lambda: not broken(service), "the end of the report", SECONDS)
    assert service.takes(service.keys["plain"])


def test_keys_share_no_prefix_cache_but_within_a_group(service: Service) -> None:
    """How fast an answer begins would else tell what others have asked."""
    content = "Once upon a time there was a green house. " * 30
    first, other = service.new_key("first"), service.new_key("other-key")
    members = [service.new_key(name, "--cache-group", "family") for name in ("mother", "child")]
    for key in (first, other, first, *members):
        body = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        answer = httpx.post(
            f"{service.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60
        )
        assert answer.status_code == 200
    cached = [usage(service, key, requests)["cached_tokens"] for key, requests in ((first, 2), (other, 1))]
    assert cached[0] > 0
    assert cached[1] == 0
    assert [usage(service, key, 1)["cached_tokens"] for key in members] == [0, cached[0]]


def usage(service: Service, key: str, requests: int) -> dict[str, Any]:
    """What a key reads of its own usage, once all its requests are in it."""

    def total() -> dict[str, Any]:
        headers = {"authorization": f"Bearer {key}"}
        read: dict[str, Any] = httpx.get(f"{service.url}/api/usage", headers=headers).json()["total"]
        return read

    wait_for(lambda: total()["requests"] == requests, "the rows of the requests", 10)
    return total()
