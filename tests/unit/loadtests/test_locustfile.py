"""Locust run headless, as `make loadtest` does, against a loopback server: its CSV and its summary."""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.loadtests.sse_server import DONE, GOOD, KEY, Script, frame, serving, text

LOCUSTFILE = Path(__file__).parents[3] / "loadtests" / "locustfile.py"
Rows = dict[str, dict[str, str]]
Run = Callable[..., tuple[subprocess.CompletedProcess[str], Rows]]


@pytest.fixture
def locust(tmp_path: Path) -> Run:
    def run(url: str, key: str = KEY) -> tuple[subprocess.CompletedProcess[str], Rows]:
        command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless"]
        limits = ["--users", "6", "--spawn-rate", "6", "--run-time", "3s", "--csv", str(tmp_path / "out")]
        environment = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": key, "NO_COLOR": "1"}
        done = subprocess.run(
            [*command, *limits],
            check=False,
            env=environment,
            cwd=LOCUSTFILE.parents[1],
            capture_output=True,
            text=True,
            timeout=60,
        )
        stats = tmp_path / "out_stats.csv"
        rows = csv.DictReader(stats.read_text().splitlines()) if stats.exists() else []
        return done, {row["Name"]: row for row in rows}

    return run


def test_streams_are_counted_with_ttft_and_tokens(locust: Run) -> None:
    script = Script(hold_s=0.2)
    with serving(script) as url:
        done, rows = locust(url)
    assert done.returncode == 0, done.stderr
    streams = [body for body in script.bodies if body["stream"]]
    count = int(rows["chat stream"]["Request Count"])
    whole = int(rows["chat whole"]["Request Count"]) if "chat whole" in rows else 0
    assert 0 < count <= len(streams)
    assert int(rows["chat TTFT"]["Request Count"]) == count
    assert float(rows["chat stream"]["Average Content Size"]) == 2
    whole_time = float(rows["chat stream"]["Average Response Time"])
    # Of the 200 ms between the two tokens, both averages being rounded on their way.
    assert whole_time - float(rows["chat TTFT"]["Average Response Time"]) > 190
    # The table may have been written before the last of them.
    streamed = int(re.findall(r"streams +(\d+) \(0 failed\)", done.stdout)[0])
    tokens = int(re.findall(r"\((\d+) tokens", done.stdout)[0])
    assert count <= streamed <= len(streams)
    assert tokens >= 2 * (streamed + whole)
    assert "TTFT     p50" in done.stdout


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (Script(status=503), "HTTP 503: not now"),
        (Script(pieces=[text("a"), frame(error={"message": "gone"}), DONE]), "error frame: gone"),
        (Script(pieces=[text("a"), DONE]), "no finish_reason"),
        (Script(pieces=[*GOOD[:2]], cut=True), "the connection broke"),
    ],
    ids=["status", "error frame", "no finish", "cut"],
)
def test_failures_are_counted_with_their_reason(locust: Run, script: Script, reason: str) -> None:
    with serving(script) as url:
        done, rows = locust(url)
    assert done.returncode == 1
    assert int(rows["chat stream"]["Failure Count"]) == int(rows["chat stream"]["Request Count"]) > 0
    assert "chat TTFT" not in rows
    assert reason in done.stdout + done.stderr


def test_a_refused_key_ends_the_run_at_once(locust: Run) -> None:
    script = Script()
    with serving(script) as url:
        done, rows = locust(url, key="wrong")
    assert done.returncode == 1
    assert "refused the key" in done.stderr
    assert (script.bodies, rows) == ([], {})
