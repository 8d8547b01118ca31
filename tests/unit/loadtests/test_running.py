"""Starting and stopping a system: what does not start says why, and no process of it is left."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loadtests.running import SystemFailedError, descendants, running
from loadtests.systems import System
from loadtests.target import Target
from tests.unit.loadtests.sse_server import KEY

ORPHAN = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.pause()"
PARENT = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {ORPHAN!r}]).pid, flush=True)"
SERVER = f"""
import subprocess, sys
from pathlib import Path
from aiohttp import web
from tests.unit.loadtests.sse_server import Script, build
parent = subprocess.Popen([sys.executable, "-c", {PARENT!r}], stdout=subprocess.PIPE, text=True)
Path(sys.argv[2]).write_text(parent.stdout.readline())
parent.wait()
web.run_app(build(Script()), host="127.0.0.1", port=int(sys.argv[1]))
"""
DRIVER = """
import json, sys
from pathlib import Path
from loadtests.cpu import adopt_orphans
from loadtests.running import descendants, running
from tests.unit.loadtests.test_running import SERVER, system
port, folder = int(sys.argv[1]), Path(sys.argv[2])
adopt_orphans()
with running(system(port, "-c", SERVER, str(port), str(folder / "orphan")), folder / "log", start_s=60):
    during = [process.pid for process in descendants()]
print(json.dumps([during, int((folder / "orphan").read_text()), len(descendants())]))
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def system(port: int, *command: str) -> System:
    return System([sys.executable, *command], {}, Target(f"http://127.0.0.1:{port}/v1", "loopback", KEY), (port,))


def test_a_system_answers_and_then_nothing_of_it_is_left(port: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER, str(port), str(tmp_path)]
    driver = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert driver.returncode == 0, driver.stderr
    during, orphan, left = json.loads(driver.stdout)
    assert orphan in during
    assert (len(during), left) == (2, 0)
    assert not any(psutil.pid_exists(pid) for pid in during)


def test_one_that_ends_early_says_why(port: int, tmp_path: Path) -> None:
    command = system(port, "-c", "import sys; sys.exit('no such model')")
    with pytest.raises(SystemFailedError, match=r"(?s)exit code 1\. The end of .*log:\nno such model"):
        start(command, tmp_path / "log", 60)


def test_one_that_never_answers_is_given_up_and_ended(port: int, tmp_path: Path) -> None:
    before = descendants()
    with pytest.raises(SystemFailedError, match="did not answer in time"):
        start(system(port, "-c", "import signal; signal.pause()"), tmp_path / "log", 0.1)
    assert descendants() == before


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        with pytest.raises(SystemFailedError, match=f"Port {port} is in use"):
            start(system(port, "-c", ""), tmp_path / "log", 1)
    assert not (tmp_path / "log").exists()


def start(command: System, log: Path, start_s: float) -> None:
    with running(command, log, start_s):
        pass
