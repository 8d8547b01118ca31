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
if title == "outer":
    sys.stdin.readline()
elif title:
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
def outer() -> Iterator[subprocess.Popen[str]]:
    """On a line of input starts a front end with a helper and an engine, which has a worker and a child."""
    engine = ["VLLM::EngineCore", 0.4, [["VLLM::Worker", 0.4, []], ["", 0.4, []]]]
    tree = ["outer", 0, [["front", 0.6, [["helper", 0.3, []], engine]]]]
    command = [sys.executable, "-c", TREE, json.dumps(tree), TREE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.communicate()


def burn(outer: subprocess.Popen[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reports of the front end and the helper, once every process of the tree is idle again."""
    assert outer.stdin is not None
    assert outer.stdout is not None
    outer.stdin.write("go\n")
    outer.stdin.flush()
    (front,) = json.loads(outer.stdout.readline())["below"]
    helper, _ = front["below"]
    return front, helper


def test_only_what_is_outside_the_engine_counts(outer: subprocess.Popen[str]) -> None:
    meter = CpuMeter(outer.pid)
    front, helper = burn(outer)
    assert (front["title"], helper["title"]) == ("front", "helper")
    user_and_system_of_both = 4
    expected = front["cpu"] + helper["cpu"]
    assert meter.seconds() == pytest.approx(expected, abs=(user_and_system_of_both + 1) * TICK_S)


def test_what_was_used_before_does_not_count(outer: subprocess.Popen[str]) -> None:
    front, _ = burn(outer)
    assert front["cpu"] >= 0.6
    assert CpuMeter(outer.pid).seconds() <= 2 * TICK_S
