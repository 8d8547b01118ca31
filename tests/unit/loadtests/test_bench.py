"""`python -m loadtests.bench` as a user runs it, against a loopback server."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.unit.loadtests.sse_server import KEY, Script, serving

REPOSITORY = Path(__file__).parents[3]


def bench(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": KEY,
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
    command = [sys.executable, "-m", "loadtests.bench", *arguments]
    return subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )


def test_json_has_a_level_for_each_concurrency() -> None:
    script = Script()
    with serving(script) as url:
        done = bench(url, "-c", "1", "-c", "3", "-n", "6", "--max-tokens", "2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == "loopback"
    assert [(level["concurrency"], level["requests"], level["errors"]) for level in report["levels"]] == [
        (1, 6, []),
        (3, 6, []),
    ]
    assert all(0 < level["ttfb_s"]["p50"] <= level["ttft_s"]["p50"] for level in report["levels"])
    warm_up = 1
    assert len(script.bodies) == 12 + warm_up


def test_the_table_names_every_measure() -> None:
    with serving(Script()) as url:
        done = bench(url, "-c", "2", "-n", "4")
    assert done.returncode == 0, done.stderr
    for heading in ("TTFB", "TTFT", "inter-token", "end to end", "tokens/s", "failed"):
        assert heading in done.stdout


def test_a_failed_request_is_exit_code_1_with_its_reason() -> None:
    with serving(Script(status=503)) as url:
        done = bench(url, "-c", "2", "-n", "4")
    assert done.returncode == 1
    assert "4 requests failed; the first: HTTP 503: not now" in done.stderr


def test_an_unknown_model_is_exit_code_1_with_those_there_are() -> None:
    with serving(Script()) as url:
        done = bench(url, "--model", "other")
    assert done.returncode == 1
    assert "no model 'other'. It serves: loopback." in done.stderr
