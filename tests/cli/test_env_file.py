"""The `.env` file that `make run` writes."""

import os
import stat
from pathlib import Path

import pytest

from cli.launcher.env_file import ensure_key, read


def test_a_new_file_holds_a_random_key_for_its_owner_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "one.env", tmp_path / "two.env"
    assert ensure_key(first)
    assert ensure_key(second)
    keys = [read(path)["PROXY_API_KEY"] for path in (first, second)]
    assert keys[0] != keys[1]
    assert all(key.startswith("sk-") and len(key) == 46 for key in keys)
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["one.env", "two.env"]


def test_a_file_with_a_key_keeps_it_and_loses_others_rights(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("PROXY_API_KEY=mine\n")
    path.chmod(0o644)
    assert not ensure_key(path)
    assert path.read_text() == "PROXY_API_KEY=mine\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["# note\nTP_SIZE=2", "# note\nPROXY_API_KEY=\nTP_SIZE=2\n"])
def test_other_lines_stay(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".env"
    path.write_text(text)
    assert ensure_key(path)
    lines = path.read_text().splitlines()
    assert lines[:2] == ["# note", "TP_SIZE=2"]
    assert [line.partition("=")[0] for line in lines[2:]] == ["PROXY_API_KEY"]


def test_a_linked_file_is_written_through_the_link(tmp_path: Path) -> None:
    target, link = tmp_path / "real.env", tmp_path / ".env"
    target.write_text("TP_SIZE=2\n")
    link.symlink_to(target)
    assert ensure_key(link)
    assert link.is_symlink()
    assert read(target).keys() == {"TP_SIZE", "PROXY_API_KEY"}
