"""Holding and ending a whole tree of processes, orphans included (Linux)."""

import ctypes
import os
import time

import psutil

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process, so that none can slip away."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap() -> dict[int, int]:
    """Every child that has ended since: process id to exit code, minus the signal for a killed one."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def kill_descendants(seconds: float) -> None:
    """SIGKILLs all descendants, again and again, since the dying leave orphans, until none is left."""
    deadline = time.monotonic() + seconds
    while (descendants := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in descendants:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
        reap()
