"""Runs pip for `make install`: shows how far it is, and says in one line what to do when it fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TextIO

OPTIONS = ("--no-deps", "--no-compile", "--no-input", "--progress-bar=off", "--disable-pip-version-check")
REDIRECTIONS = {"PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"}
"""Settings of the caller that would send packages elsewhere than into `.venv`."""

UNREACHABLE = re.compile(
    r"Retrying \(Retry|NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Could not fetch URL"
)


class InstallError(Exception):
    """An install that cannot go on; the message says what to do about it."""


class Progress:
    """Where the install is: one line rewritten in place on a terminal, a line per step elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._started = time.monotonic()

    def phase(self, text: str) -> None:
        """A new step begins."""
        self._show(text) if self._live else self._line(text)

    def count(self, text: str, done: int, total: int, package: str) -> None:
        """Progress within a step: shown live only, where it costs no lines."""
        if self._live:
            self._show(f"{text} {done}/{total} {package}")

    def done(self, text: str) -> None:
        """The last word."""
        self.clear()
        self._line(text)

    def clear(self) -> None:
        """Takes the live line away."""
        if self._live:
            print("\r\033[K", end="", file=self._stream, flush=True)

    def _show(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        line = f"install {time.monotonic() - self._started:4.0f} s  {text}"[:width]
        print(f"\r\033[K{line}", end="", file=self._stream, flush=True)

    def _line(self, text: str) -> None:
        print(f"install {time.monotonic() - self._started:4.0f} s  {text}", file=self._stream, flush=True)


def installed_packages(venv: Path) -> dict[str, str]:
    """What is wholly installed in `venv`, normalised name to version; pip writes RECORD last."""
    found = {}
    for record in venv.glob("lib/python*/site-packages/*.dist-info/RECORD"):
        name, _, version = record.parent.name[: -len(".dist-info")].rpartition("-")
        found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


class PipRun:
    """pip in `venv`, its output in the file `log`; it inherits the descriptor `lock`."""

    def __init__(self, venv: Path, log: Path, lock: int, progress: Progress) -> None:
        self._venv = venv
        self._log = log
        self._lock = lock
        self._progress = progress
        self._output = ""
        log.write_text("")

    def install(self, what: str, arguments: list[str], packages: dict[str, str]) -> None:
        """Runs `pip install`; `packages` are counted on the way. Raises InstallError."""
        self._progress.phase(f"installing {what}")
        command: list[str | Path] = [
            self._venv / "bin" / "python",
            "-I",
            "-m",
            "pip",
            "install",
            *OPTIONS,
            *arguments,
        ]
        environment = {name: value for name, value in os.environ.items() if name not in REDIRECTIONS}
        begin = self._log.stat().st_size
        with (
            self._log.open("ab") as log,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(self._lock,),
            ) as process,
        ):
            try:
                while process.poll() is None:
                    self._read(begin)
                    self._tell(packages)
                    time.sleep(0.2)
            finally:
                process.terminate()  # no effect on one that has ended
        self._read(begin)
        if process.returncode:
            raise InstallError(self._explain())

    def lacks(self, requirement: str) -> bool:
        """Whether the last run ended because no source has `requirement`, all of them having answered."""
        return f"No matching distribution found for {requirement}" in self._output and not UNREACHABLE.search(
            self._output
        )

    def _read(self, begin: int) -> None:
        with self._log.open("rb") as log:
            log.seek(begin)
            self._output = log.read().decode(errors="replace")

    def _tell(self, packages: dict[str, str]) -> None:
        if "Installing collected packages" in self._output:
            present = installed_packages(self._venv)
            done = sum(present.get(name) == version for name, version in packages.items())
            self._progress.count("unpacking", done, len(packages), "")
            return
        met = re.findall(r"^(?:Collecting|Processing|Requirement already satisfied:) (\S+)", self._output, re.MULTILINE)
        if met and packages:
            name = met[-1].rpartition("/")[2]
            self._progress.count("fetching", len(met), len(packages), name)

    def _explain(self) -> str:
        where = f"the whole log is in {self._log}"
        if "No space left on device" in self._output:
            return f"the disk is full; free some space and run it again ({where})"
        if UNREACHABLE.search(self._output):
            return f"the package index cannot be reached; check the network and `pip config list` ({where})"
        missing = re.search(r"No matching distribution found for (\S+)", self._output)
        if missing:
            return f"no source has {missing[1]} for this machine; use Python 3.11 on Linux x86_64 ({where})"
        errors = re.findall(r"^(?:ERROR|error): (.+)", self._output, re.MULTILINE)
        return f"pip failed: {errors[-1] if errors else 'no reason given'} ({where})"
