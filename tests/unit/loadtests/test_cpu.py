"""CPU accounting on a real process tree that reports its own CPU time."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from loadtests.cpu import CpuMeter

TREE = """
import json, subprocess, sys, time, setproctitle
title, burn, children = json.loads(sys.argv[1])
if title:
    setproctitle.setproctitle(title)
started = [
    subprocess.Popen([sys.executable, "-c", sys.argv[2], json.dumps(child), sys.argv[2]],
                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for child in children
]
below = [json.loads(child.stdout.readline()) for child in started]
while time.process_time() < burn:
    pass
print(json.dumps({"title": title, "cpu": time.process_time(), "below": below}), flush=True)
sys.stdin.read()
"""
TICK_S = 0.01


@pytest.fixture
def meter() -> CpuMeter:
    return CpuMeter()


@pytest.fixture
def report(meter: CpuMeter) -> Iterator[dict[str, Any]]:
    """A front end with a helper and an engine, which has a worker and a nameless child; all idle by now."""
    engine = ["VLLM::EngineCore", 0.4, [["VLLM::Worker", 0.4, []], ["", 0.4, []]]]
    tree = ["front", 0.6, [["helper", 0.3, []], engine]]
    command = [sys.executable, "-c", TREE, json.dumps(tree), TREE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.communicate()


def test_only_what_is_outside_the_engine_counts(meter: CpuMeter, report: dict[str, Any]) -> None:
    helper = report["below"][0]
    assert (report["title"], helper["title"]) == ("front", "helper")
    user_and_system_of_both = 4
    assert meter.seconds() == pytest.approx(report["cpu"] + helper["cpu"], abs=(user_and_system_of_both + 1) * TICK_S)


def test_what_was_used_before_does_not_count(report: dict[str, Any]) -> None:
    assert report["cpu"] >= 0.6
    assert CpuMeter().seconds() <= 2 * TICK_S
