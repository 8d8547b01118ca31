"""Owns every process of the service: `python -m cli.launcher.supervisor LOGS COMMAND...`, a pipe on stdin.

It has a session of its own, so that what befalls the launcher does not befall it. When the pipe closes, as it
does when the launcher is killed, or on a signal, it ends COMMAND kindly, then kills all that is left.
Ray's logs are kept in the folder LOGS.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from cli.launcher.processes import adopt_orphans, kill_descendants, reap

GRACE_S = 5.0
KILL_S = 3.0


class Supervisor:
    """COMMAND and all that it starts."""

    def __init__(self, command: list[str]) -> None:
        self._wakeup, self._asked = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        adopt_orphans()
        self._pid = subprocess.Popen(command, stdin=subprocess.DEVNULL).pid
        self._code: int | None = None

    def run(self) -> int:
        """Waits for COMMAND's end or the request to end it; its exit code once nothing is left of it."""
        while self._code is None and not select.select([sys.stdin, self._wakeup], [], [], 0.1)[0]:
            self._take_note()
        if self._code is None:
            os.kill(self._pid, signal.SIGINT)
            self._await_end(GRACE_S)
            kill_descendants(KILL_S)
            return 0
        kill_descendants(KILL_S)
        return self._code if self._code > 0 else 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        os.write(self._asked, b"!")

    def _take_note(self) -> None:
        self._code = reap().get(self._pid, self._code)

    def _await_end(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._code is None and time.monotonic() < deadline:
            time.sleep(0.05)
            self._take_note()


def keep_logs(scratch: Path, logs: Path) -> None:
    """Moves the logs of Ray's last session from its scratch folder to `logs`; the folder goes."""
    shutil.rmtree(logs, ignore_errors=True)
    session = scratch / "ray" / "session_latest" / "logs"
    if session.is_dir():
        shutil.copytree(session, logs, symlinks=True, ignore_dangling_symlinks=True)
    shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    """Exit codes: 0 ended on request; else COMMAND's own, 1 where that was 0 or a signal."""
    logs, *command = sys.argv[1:]
    code = Supervisor(command).run()
    if scratch := os.environ.get("RAY_TMPDIR"):
        keep_logs(Path(scratch), Path(logs))
    return code


if __name__ == "__main__":
    sys.exit(main())
