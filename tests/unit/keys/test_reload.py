"""The keys file while the service runs: every change counts soon, and no broken one counts."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from serve_app.gateway.errors import Unauthorized
from serve_app.gateway.keys.keyring import Keyring, KeysConfig
from serve_app.settings import ConfigError
from tests.unit.keys.files import SecretVolume, bearer, digest, keyring, record, write, write_text

ONE, TWO = record("one0000000", "first"), record("two0000000", "second")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.DEBUG, "ray.serve")
    yield caplog
    logger.removeHandler(caplog.handler)


@asynccontextmanager
async def following(ring: Keyring) -> AsyncIterator[None]:
    task = asyncio.create_task(ring.run())
    yield
    assert not task.done()
    task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  what is awaited tells nobody
            await asyncio.sleep(0.005)


def opens(ring: Keyring, key: str) -> bool:
    try:
        ring.authenticate(bearer(key))
    except Unauthorized:
        return False
    return True


def metric(ring: Keyring, name: str) -> float | None:
    return ring.metrics.get_sample_value(f"vllm_chat_keys_{name}")


async def test_a_change_of_the_file_is_taken_over(tmp_path: Path) -> None:
    ring = keyring(write(tmp_path / "keys.yaml", ONE))
    assert metric(ring, "loaded") == 1
    async with following(ring):
        write(tmp_path / "keys.yaml", ONE, TWO)
        await until(lambda: opens(ring, "second"))
        assert (opens(ring, "first"), metric(ring, "loaded")) == (True, 2)
        write(tmp_path / "keys.yaml", {**ONE, "revoked": True}, TWO)
        await until(lambda: not opens(ring, "first"))
        assert (opens(ring, "second"), metric(ring, "loaded"), metric(ring, "reload_errors_total")) == (True, 2, 0)


async def test_a_file_rewritten_in_place_with_the_same_size_and_time_is_taken_over(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.yaml", ONE)
    before = path.stat()
    ring = keyring(path)
    async with following(ring):
        path.write_text(path.read_text().replace(digest("first"), digest("other")))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        await until(lambda: opens(ring, "other"))
        assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
        assert not opens(ring, "first")


async def test_a_kubernetes_secret_that_is_swapped(tmp_path: Path) -> None:
    volume = SecretVolume(tmp_path / "keys")
    volume.put(one=yaml.safe_dump(ONE))
    ring = keyring(volume.path)
    async with following(ring):
        assert (opens(ring, "first"), opens(ring, "second")) == (True, False)
        volume.put(one=yaml.safe_dump(ONE), more=yaml.safe_dump({"keys": [TWO, record("three00000", "third")]}))
        await until(lambda: opens(ring, "second"))
        assert (opens(ring, "first"), opens(ring, "third"), metric(ring, "loaded")) == (True, True, 3)
        volume.put(more=yaml.safe_dump({"keys": [TWO]}))
        await until(lambda: not opens(ring, "third"))
        assert (opens(ring, "first"), opens(ring, "second"), metric(ring, "loaded")) == (False, True, 1)
    assert not ring.broken


async def test_a_file_of_a_kubernetes_secret_that_is_swapped(tmp_path: Path) -> None:
    volume = SecretVolume(tmp_path / "keys")
    volume.put(file=yaml.safe_dump(ONE))
    ring = keyring(volume.path / "file")
    async with following(ring):
        volume.put(file=yaml.safe_dump(TWO))
        await until(lambda: opens(ring, "second"))
        assert not opens(ring, "first")


async def test_a_directory_may_become_empty_and_dotfiles_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".one.yaml.swp").write_text("not: [yaml")
    (tmp_path / "folder").mkdir()
    path = write(tmp_path / "one.yaml", ONE)
    ring = keyring(tmp_path)
    async with following(ring):
        assert opens(ring, "first")
        path.unlink()
        await until(lambda: not opens(ring, "first"))
    assert (ring.broken, metric(ring, "loaded")) == (False, 0)


SECRET = "sk-vc-pasted0000-" + "s" * 43 + "-000000"
BROKEN = {
    "no YAML": f"keys: [{SECRET}\n",
    "cut": "",
    "no mapping": f"- {SECRET}\n",
    "no bytes of text": "keys: \x00",
    "a tag that is not for it": f"keys: !!timestamp {SECRET}\n",
    "an alias of itself": "keys: &a [*a]\n",
    "deep": "[" * 20_000,
    "an unknown field": yaml.safe_dump({"keys": [{**ONE, "model": SECRET}]}),
    "a secret for a digest": yaml.safe_dump({"keys": [{**ONE, "secrets": [{"digest": SECRET, "created": 1}]}]}),
    "no secret": yaml.safe_dump({"keys": [{**ONE, "secrets": []}]}),
    "no model": yaml.safe_dump({"keys": [{**ONE, "models": []}]}),
    "a limit of nothing": yaml.safe_dump({"keys": [{**ONE, "limits": {"concurrent": 0}}]}),
    "an unknown tier": yaml.safe_dump({"keys": [{**ONE, "tier": SECRET}]}),
    "a bad date": f"keys: [{{id: one0000000, name: n, created: 2026-13-45, note: {SECRET}}}]\n",
    "an id twice": yaml.safe_dump({"keys": [ONE, {**TWO, "id": "one0000000"}]}),
    "a digest twice": yaml.safe_dump({"keys": [ONE, {**ONE, "id": "two0000000"}]}),
    "a digest that needs a pepper": yaml.safe_dump(
        {"keys": [{**ONE, "secrets": [{"digest": "hmac-" + digest("first"), "created": "2026-01-01"}]}]}
    ),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_the_service_does_not_start_with_a_broken_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="key") as caught:
        keyring(path)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_file_keeps_the_last_good_keys(tmp_path: Path, text: str, log: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "keys.yaml", ONE)
    ring = keyring(path)
    async with following(ring):
        write_text(path, text)
        await until(lambda: ring.broken)
        assert (opens(ring, "first"), metric(ring, "broken"), metric(ring, "reload_errors_total")) == (True, 1, 1)
        write(path, TWO)
        await until(lambda: not ring.broken)
        assert (opens(ring, "first"), opens(ring, "second"), metric(ring, "broken")) == (False, True, 0)
    assert "the last good keys stay in use" in log.text
    assert [text for text in (SECRET, digest("first"), "Traceback") if text in log.text] == []


async def test_a_file_that_goes_away_keeps_the_last_good_keys(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "keys.yaml", ONE)
    ring = keyring(path)
    async with following(ring):
        path.unlink()
        await until(lambda: ring.broken)
        assert opens(ring, "first")
        write(path, ONE, TWO)
        await until(lambda: opens(ring, "second"))
    assert f"keys {path}: No such file or directory" in log.text


def test_errors_name_the_file_the_field_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("keys:\n- id: one0000000\n  name: [\n")
    with pytest.raises(ConfigError, match=rf"^keys file {path}: not valid YAML at line 4$"):
        keyring(path)
    write(path, ONE, {**TWO, "limits": {"concurrent": 0}})
    with pytest.raises(ConfigError, match=rf"^keys file {path}: keys\.1\.limits\.concurrent: .*greater than 0$"):
        keyring(path)
    with pytest.raises(ConfigError, match=r"^keys /nowhere/keys\.yaml: No such file or directory$"):
        keyring(Path("/nowhere/keys.yaml"))


def test_a_pepper_must_be_there_and_long_enough(tmp_path: Path) -> None:
    pepper = tmp_path / "pepper"
    config = KeysConfig(pepper_file=str(pepper))
    with pytest.raises(ConfigError, match=r"^pepper file .*/pepper: No such file or directory$"):
        Keyring(config, {})
    pepper.write_text("short\n")
    with pytest.raises(ConfigError, match="it holds 5 bytes, and 32 are the least"):
        Keyring(config, {})


async def test_no_attempt_is_logged(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    ring = keyring(write(tmp_path / "keys.yaml", ONE), PROXY_API_KEY="admin-secret")
    assert [opens(ring, key) for key in ("first", "guessed", "admin-secret")] == [True, False, True]
    assert [text for text in ("first", "guessed", "admin-secret", digest("first")[7:]) if text in log.text] == []
    assert "keys in use: 1" in log.text
