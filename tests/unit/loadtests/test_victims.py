"""Who is struck: living replicas only, by kinds for which they have a process, and never the spared ones."""

import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from loadtests.victims import STRIKES, Killer, living_replicas, title
from tests.service import alive, wait_for

REPLICA = "ray::ServeReplica:chat:replica-x"
TITLES = [REPLICA, f"{REPLICA}.__init__", "ray::ServeReplica:chat:gateway", "VLLM::EngineCore"]
FLEET = f"""
exec 3<&0
(exec -a {REPLICA} cat <&3) &
(exec -a {REPLICA} bash <<< '(exec -a VLLM::EngineCore cat <&3) & wait') &
(exec -a {REPLICA}.__init__ cat <&3) &
(exec -a ray::ServeReplica:chat:gateway cat <&3) &
while :; do wait; done
"""
"""Two replicas, the second with an engine core, a replica that is starting, and a gateway."""


@pytest.fixture
def root() -> Iterator[psutil.Process]:
    fleet = subprocess.Popen(["bash", "-c", FLEET], stdin=subprocess.PIPE, start_new_session=True)
    root = psutil.Process(fleet.pid)
    wait_for(lambda: set(TITLES) <= set(map(title, processes(root))), "the fleet")
    wait_for(lambda: len(living_replicas(root, "x")) == 2, "its replicas")
    yield root
    os.killpg(fleet.pid, signal.SIGKILL)
    fleet.communicate()


def processes(root: psutil.Process, name: str = "") -> list[psutil.Process]:
    found = [process for process in root.children(recursive=True) if alive(process)]
    return [process for process in found if not name or title(process) == name]


def test_only_replicas_that_have_started_are_killed_and_one_is_spared(root: psutil.Process) -> None:
    killer = Killer(root, "x", ["replica"], seed=1, spare=1)
    assert [killer.strike(), killer.strike()] == ["replica", None]
    wait_for(lambda: len(processes(root, REPLICA)) == 1, "the death")
    assert [len(processes(root, name)) for name in TITLES[1:3]] == [1, 1]


def test_with_none_spared_all_are_killed(root: psutil.Process) -> None:
    killer = Killer(root, "x", ["replica"], seed=1, spare=0)
    assert [killer.strike(), killer.strike()] == ["replica", "replica"]
    wait_for(lambda: not processes(root, REPLICA), "the deaths")
    assert killer.strike() is None


def test_the_seed_decides_who_is_struck(root: psutil.Process) -> None:
    replicas = sorted(living_replicas(root, "x"), key=lambda replica: replica.pid)
    chosen = []
    for seed in [0, 1, 2, 3, 4, 5] * 2:
        assert Killer(root, "x", ["hang"], seed, spare=0).strike() == "hang"
        (alive_one,) = living_replicas(root, "x")
        chosen.append(1 - replicas.index(alive_one))
        replicas[chosen[-1]].resume()
        wait_for(lambda: len(living_replicas(root, "x")) == 2, "its return")
    assert chosen[:6] == chosen[6:]
    assert set(chosen) == {0, 1}


def test_a_replica_that_hangs_is_not_struck_again(root: psutil.Process) -> None:
    killer = Killer(root, "x", ["hang"], seed=1, spare=0)
    assert [killer.strike(), killer.strike(), killer.strike()] == ["hang", "hang", None]
    assert living_replicas(root, "x") == []
    assert len(processes(root, REPLICA)) == 2


def test_only_a_replica_with_an_engine_core_can_lose_it(root: psutil.Process) -> None:
    (engine_core,) = processes(root, "VLLM::EngineCore")
    killer = Killer(root, "x", ["engine", "worker"], seed=1, spare=0)
    assert killer.strike() == "engine"
    wait_for(lambda: not alive(engine_core), "the end of the engine core")
    assert killer.strike() is None


def test_an_engine_core_that_hangs_takes_its_replica_out_of_the_living(root: psutil.Process) -> None:
    killer = Killer(root, "x", ["engine-hang"], seed=1, spare=0)
    assert killer.strike() == "engine-hang"
    assert len(living_replicas(root, "x")) == 1


def test_every_kind_is_a_signal_that_cannot_be_caught() -> None:
    assert {strike.number for strike in STRIKES.values()} == {signal.SIGKILL, signal.SIGSTOP}
