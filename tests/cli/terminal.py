"""The real program on a pseudo-terminal, driven as a person would."""

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.screen import Screen

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0
CTRL_C, CTRL_D = "\x03", "\x04"
_WHOLE = re.compile(r".*?(?=\x1b[^A-Za-z=>]*\Z|\Z)", re.DOTALL)  # up to a control sequence cut in two


class Terminal:
    """One running program and what its screen shows."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int, width: int) -> None:
        self.process = process
        self.screen = Screen(width)
        self.raw = ""
        self._fd = fd
        self._pending = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait_for(self, text: str) -> None:
        """Read until the screen shows the text."""
        deadline = time.monotonic() + DEADLINE
        while text not in self.screen.text:
            assert time.monotonic() < deadline, f"{text!r} did not appear on\n{self.screen.text}"
            assert self._read(), f"the program ended without {text!r}:\n{self.screen.text}"

    def wait_for_prompt(self, count: int) -> None:
        """Read until the prompt has come `count` times and nothing has been typed at the last."""
        deadline = time.monotonic() + DEADLINE
        while [line[:1] for line in self.screen.lines].count("\u203a") < count:
            assert time.monotonic() < deadline, f"no prompt number {count} on\n{self.screen.text}"
            assert self._read(), f"the program ended:\n{self.screen.text}"

    def wait_for_end(self, pressing: str = "") -> int:
        """Read to the end of the program, pressing a key now and then, and return its exit code.

        Once is not enough for Ctrl+C at a prompt: Python loses it in the instant before it waits for keys.
        """
        deadline = time.monotonic() + DEADLINE
        self.type(pressing)
        while self._read(on_silence=pressing):
            assert time.monotonic() < deadline, f"still running:\n{self.screen.text}"
        return self.process.wait(DEADLINE)

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._fd)[3] & termios.ECHO)

    def _read(self, on_silence: str = "") -> bool:
        ready, _, _ = select.select([self._fd], [], [], 1.0)
        if not ready:
            self.type(on_silence)
            return True
        try:
            text = self._decode(os.read(self._fd, 65536))
        except OSError:  # the other side is closed
            return False
        self.raw += text
        self._pending += text
        whole = _WHOLE.match(self._pending)
        assert whole
        self.screen.write(whole[0])
        self._pending = self._pending[whole.end() :]
        return True


@contextmanager
def program(
    *arguments: str, width: int = 80, height: int = 24, environ: dict[str, str] | None = None
) -> Iterator[Terminal]:
    """Run `vllm-chat` on a terminal of its own."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    environment = {
        **{name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}},
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
        "INPUTRC": "/dev/null",
        **(environ or {}),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *arguments],
        stdin=child,
        stdout=child,
        stderr=child,
        env=environment,
        start_new_session=True,
    )
    os.close(child)
    try:
        yield Terminal(process, parent, width)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE)
        os.close(parent)


_START = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl+C is a signal
runpy.run_module("cli", run_name="__main__")
"""
