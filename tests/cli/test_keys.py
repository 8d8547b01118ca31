"""`vllm-chat keys`: keys that the service takes, edits that lose nothing, and no secret but the one shown once."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from cli import keys_file
from serve_app.gateway.errors import Unauthorized
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.keys.keyring import Keyring, KeysConfig
from serve_app.gateway.keys.record import KeyRecord, Limits
from serve_app.settings import ConfigError
from tests.cli.program import run
from tests.cli.terminal import ROOT

KEY_FORM = re.compile(r"sk-vc-([a-z0-9]{8,12})-([A-Za-z0-9_-]{43})-([0-9A-Za-z]{6})\n")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("KEYS_FILE", "KEY_PEPPER_FILE", "PROXY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def create(*arguments: str) -> str:
    result = run("keys", "create", *arguments)
    assert result.exit_code == 0, result.output
    assert KEY_FORM.fullmatch(result.stdout)
    return result.stdout.strip()


def id_of(key: str) -> str:
    return key.split("-")[2]


def who(key: str, now: float | None = None, **environment: str) -> Caller:
    keys = KeysConfig(path="keys.yaml")
    ring = Keyring(keys, environment) if now is None else Keyring(keys, environment, lambda: now)
    return ring.authenticate([(b"authorization", f"Bearer {key}".encode())])


def opens(key: str, now: float | None = None) -> bool:
    try:
        return who(key, now).id == id_of(key)
    except Unauthorized:
        return False


def listed() -> list[dict[str, Any]]:
    result = run("keys", "list", "--json")
    assert result.exit_code == 0
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def status(key: str) -> str:
    (found,) = (entry["status"] for entry in listed() if entry["id"] == id_of(key))
    return str(found)


def lines(result: Result) -> list[str]:
    return [line.rstrip() for line in result.stdout.splitlines()]


def test_a_key_made_here_opens_the_service() -> None:
    options = ["--models", "llama-*,demo", "--models", "q?", "--endpoints", "chat*", "--feature", "benchmark"]
    limits = ["--rpm", "60", "--tpm", "9000", "--concurrent", "4", "--max-tokens", "5", "--context", "6"]
    key = create("ci", *options, *limits, "--tier", "low", "--cache-group", "team", "--expires", "1h")
    assert who(key) == Caller(
        id=id_of(key),
        name="ci",
        models=("llama-*", "demo", "q?"),
        endpoints=("chat*",),
        features=frozenset({"benchmark"}),
        limits=Limits(requests_per_minute=60, tokens_per_minute=9000, concurrent=4, max_tokens=5, context=6),
        tier="low",
        cache_group="team",
    )


def test_a_plain_key_may_use_all_models_and_routes() -> None:
    key = create("bob")
    assert who(key) == Caller(id=id_of(key), name="bob", cache_group=id_of(key))


def test_a_key_is_shown_alone_and_the_file_holds_its_digest_for_its_owner_only() -> None:
    result = run("keys", "create", "ci")
    key = result.stdout.strip()
    assert result.stderr == f"Key {id_of(key)} (ci) is in keys.yaml. It is shown this once.\n"
    assert Path("keys.yaml").stat().st_mode & 0o777 == 0o600
    text = Path("keys.yaml").read_text()
    assert KEY_FORM.fullmatch(result.stdout)[2] not in text  # type: ignore[index]
    assert yaml.safe_load(text)["keys"][0]["name"] == "ci"


def test_the_check_is_the_crc_of_what_precedes_it() -> None:
    import zlib

    for number in range(20):
        text, _, check = create(str(number)).rpartition("-")
        digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
        value = 0
        for digit in check:
            value = value * 62 + digits.index(digit)
        assert value == zlib.crc32(text.encode())


def test_keys_under_a_pepper_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pepper").write_text("p" * 32 + "\n")
    Path("other").write_text("q" * 32)
    old = create("old")
    monkeypatch.setenv("KEY_PEPPER_FILE", "pepper")
    key = create("new")
    assert "hmac-sha256:" in Path("keys.yaml").read_text()
    assert [who(each, KEY_PEPPER_FILE="pepper").name for each in (old, key)] == ["old", "new"]
    with pytest.raises(Unauthorized):
        who(key, KEY_PEPPER_FILE="other")
    with pytest.raises(ConfigError, match="its digest needs the pepper"):
        who(key)
    result = run("keys", "create", "x", "--pepper-file", "keys.yaml.absent")
    assert result.exit_code == 2
    Path("pepper").write_text("p" * 31)
    result = run("keys", "create", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "✗ The pepper file pepper holds fewer than 32 bytes.\n"


def test_both_sides_have_the_file_in_the_same_form() -> None:
    def form(schema: object) -> object:
        if isinstance(schema, dict):
            return {name: form(value) for name, value in schema.items() if name not in {"title", "description"}}
        return [form(item) for item in schema] if isinstance(schema, list) else schema

    ours, theirs = keys_file.KeyRecord.model_json_schema(), KeyRecord.model_json_schema()
    assert form(ours) == form(theirs)


def test_revoke() -> None:
    first, second = create("first"), create("second")
    assert opens(first)
    result = run("keys", "revoke", id_of(first))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"Key {id_of(first)} (first) is revoked.\n"
    assert [(opens(key), status(key)) for key in (first, second)] == [(False, "revoked"), (True, "active")]
    text = Path("keys.yaml").read_text()
    assert run("keys", "revoke", id_of(first)).exit_code == 0
    assert Path("keys.yaml").read_text() == text


def test_rotate_lets_the_old_secret_live_as_long_as_told() -> None:
    old = create("ci", "--rpm", "60")
    result = run("keys", "rotate", id_of(old), "--overlap", "2h")
    new = result.stdout.strip()
    ends = re.fullmatch(
        rf"Key {id_of(old)} \(ci\) has a new secret; the old one works until (\S+ \S+) UTC\. It is shown this once\.\n",
        result.stderr,
    )
    assert (id_of(new), new != old, ends is not None) == (id_of(old), True, True)
    assert [opens(key) for key in (old, new)] == [True, True]
    assert status(new) == "rotating"
    (entry,) = keys_file.read(Path("keys.yaml"))
    end = entry.secrets[1].expires
    assert end is not None
    assert (end - entry.secrets[0].created).total_seconds() == 7200
    assert [opens(key, end.timestamp() - 1) for key in (old, new)] == [True, True]
    assert [opens(key, end.timestamp()) for key in (old, new)] == [False, True]
    assert who(new).limits.requests_per_minute == 60


def test_rotate_again_never_lengthens_an_old_secret() -> None:
    first = create("ci")
    second = run("keys", "rotate", id_of(first), "--overlap", "1h").stdout.strip()
    third = run("keys", "rotate", id_of(first)).stdout.strip()
    assert [opens(key) for key in (first, second, third)] == [True] * 3
    (entry,) = keys_file.read(Path("keys.yaml"))
    spans = [round((s.expires - entry.secrets[0].created).total_seconds() / 3600) for s in entry.secrets if s.expires]
    assert spans == [24, 1]


def test_rotate_without_overlap_ends_the_old_secret_now() -> None:
    old = create("ci")
    result = run("keys", "rotate", id_of(old), "--overlap", "0h")
    assert "the old one no longer works" in result.stderr
    assert [opens(key) for key in (old, result.stdout.strip())] == [False, True]
    assert status(old) == "active"


def test_a_key_that_has_ended_is_not_rotated_unless_it_gets_a_new_end() -> None:
    revoked, expired = create("revoked"), create("expired")
    run("keys", "revoke", id_of(revoked))
    text = Path("keys.yaml").read_text()
    Path("keys.yaml").write_text(text.replace("name: expired\n", "name: expired\n  expires: 2020-01-01\n"))
    assert status(expired) == "expired"
    for key, reason in ((revoked, "is revoked"), (expired, "has expired")):
        result = run("keys", "rotate", id_of(key))
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"Key '{id_of(key)}' {reason}." in result.stderr
    result = run("keys", "rotate", id_of(expired), "--expires", "30d")
    assert [opens(key) for key in (expired, result.stdout.strip())] == [True, True]


def test_list_shows_rights_and_nothing_of_a_secret() -> None:
    first = create("ci\x1b[2J", "--rpm", "60", "--tier", "high", "--expires", "2999-12-31")
    second = create("bob", "--models", "a*,b", "--endpoints", "chat*")
    a, b = id_of(first), id_of(second)
    result = run("keys", "list")
    assert lines(result) == [
        "id          name  status  expires     models  endpoints  limits",
        f"{a}  ci    active  2999-12-31  *       *          rpm 60",
        f"{'':57}tier high",
        f"{b}  bob   active  -           a*      chat*      -",
        f"{'':38}b",
    ]
    shown = result.stdout + run("keys", "list", "--json").stdout
    digests = re.findall(r"sha256:(\w+)", Path("keys.yaml").read_text())
    assert [text for text in (*digests, first.split("-", 3)[3], second.split("-", 3)[3]) if text in shown] == []


def test_list_as_json() -> None:
    key = create("ci", "--tpm", "9", "--expires", "2999-12-31T12:00:00+02:00")
    (entry,) = listed()
    created = entry["created"]
    assert entry == {
        "id": id_of(key),
        "name": "ci",
        "status": "active",
        "secrets": [{"created": created, "expires": None}],
        "created": created,
        "expires": "2999-12-31T12:00:00+02:00",
        "revoked": False,
        "models": ["*"],
        "endpoints": [],
        "features": [],
        "limits": {
            "requests_per_minute": None,
            "tokens_per_minute": 9,
            "concurrent": None,
            "max_tokens": None,
            "context": None,
        },
        "tier": "normal",
        "cache_group": None,
    }


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--expires", "2020-01-01"], "it is in the past"),
        (["--expires", "0d"], "it is in the past"),
        (["--expires", "30x"], "give a number and m, h, d or w"),
        (["--expires", "soon"], "give a span such as 30d, or a date"),
        (["--rpm", "0"], "greater than or equal to 1"),
        (["--tier", "top"], "'top'"),
        (["--feature", "A B"], "features.0: String should match pattern"),
        (["--cache-group", ""], "cache_group: String should have at least 1 character"),
        (["--file", "."], "is a directory"),
    ],
)
def test_wrong_usage_changes_nothing(options: list[str], reason: str) -> None:
    result = run("keys", "create", "ci", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason in " ".join(re.sub("[│\n]", " ", result.stderr).split())
    assert not Path("keys.yaml").exists()


@pytest.mark.parametrize("command", [["list"], ["revoke", "a"], ["rotate", "a"]])
def test_without_a_file(command: list[str]) -> None:
    result = run("keys", *command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("✗ There is no keys file keys.yaml.\n")
    assert not Path("keys.yaml").exists()


def test_an_unknown_id() -> None:
    create("ci")
    result = run("keys", "revoke", "nobody")
    assert (result.exit_code, result.stderr) == (
        1,
        "✗ keys.yaml has no key 'nobody'.\n  `vllm-chat keys list` shows the ids.\n",
    )


@pytest.mark.parametrize("text", ["keys: [", "", "- a", "keys: [{id: a}]", "keys: !!timestamp x", "keys: \xff"])
def test_a_file_that_is_no_keys_file_is_left_alone(text: str) -> None:
    Path("keys.yaml").write_bytes(text.encode("latin-1"))
    for command in (["create", "ci"], ["list"], ["revoke", "a"]):
        result = run("keys", *command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("✗ keys.yaml is not a keys file: ")
    assert Path("keys.yaml").read_bytes() == text.encode("latin-1")


def test_a_folder_that_is_not_there() -> None:
    result = run("keys", "create", "ci", "--file", "nowhere/keys.yaml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"✗ The keys file \S+ cannot be edited: No such file or directory\.\n", result.stderr)


def test_keys_file_names_the_file_and_a_link_stays_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("real").mkdir()
    Path("link.yaml").symlink_to("real/keys.yaml")
    monkeypatch.setenv("KEYS_FILE", "link.yaml")
    create("ci")
    create("bob")
    assert Path("link.yaml").is_symlink()
    assert [entry["name"] for entry in listed()] == ["ci", "bob"]
    assert len(keys_file.read(Path("real/keys.yaml"))) == 2


def test_a_write_that_fails_leaves_the_old_file_and_shows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    create("ci")
    before = Path("keys.yaml").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("keys", "create", "bob")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "✗ The keys file keys.yaml cannot be written: No space left on device.\n"
    assert Path("keys.yaml").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == [".keys.yaml.lock", "keys.yaml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_file_stays_its_owners_when_root_edits_it() -> None:
    create("ci")
    os.chown("keys.yaml", 1000, 1000)
    create("bob")
    found = Path("keys.yaml").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1000, 1000, 0o600)
    assert Path(".keys.yaml.lock").stat().st_uid == 1000


def test_edits_at_the_same_time_lose_nothing_and_readers_find_a_whole_file() -> None:
    path, editors, edits = Path("keys.yaml").resolve(), 6, 5
    create("first")
    now = keys_file.read(path)[0].created

    def edit(editor: int) -> None:
        for number in range(edits):
            _, record = keys_file.new_record({"name": f"{editor}.{number}"}, b"", now)
            with keys_file.editing(path) as records:
                records.append(record)

    threads = [threading.Thread(target=edit, args=(editor,)) for editor in range(editors)]
    for thread in threads:
        thread.start()
    sizes = []
    while any(thread.is_alive() for thread in threads):
        sizes.append(len(keys_file.read(path)))
    assert sizes == sorted(sizes)
    names = {record.name for record in keys_file.read(path)}
    assert names == {"first"} | {f"{editor}.{number}" for editor in range(editors) for number in range(edits)}


def test_programs_at_the_same_time_lose_nothing(folder: Path) -> None:
    command = [sys.executable, "-m", "cli", "keys", "create", "--file", str(folder / "keys.yaml")]
    programs = [
        subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for name in "abcd"
    ]
    shown = [program.communicate(timeout=60)[0].strip() for program in programs]
    assert [opens(key) for key in shown] == [True] * 4
    assert sorted(entry["name"] for entry in listed()) == list("abcd")


def test_no_color_has_no_colour() -> None:
    create("ci")
    environment = {"PATH": os.environ["PATH"], "FORCE_COLOR": "1", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cli", "keys", "list"]
    plain = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain)


def test_help_has_examples() -> None:
    for command in ([], ["create"], ["list"], ["revoke"], ["rotate"]):
        result = run("keys", *command, "--help")
        assert result.exit_code == 0
        assert "vllm-chat keys create ci --expires 90d --rpm 60 --tpm 100000" in result.stdout
