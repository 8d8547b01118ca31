"""The line the user types: prompt, editing, and silence of the keyboard while an answer is on the screen."""

import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PROMPT = "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK} "


def read_line(colour: bool) -> str:
    """Ask for a line. A last backslash continues it on the next. Raises EOFError and KeyboardInterrupt."""
    _enable_editing()
    prompt = PROMPT if "utf" in (sys.stdout.encoding or "").lower() else "> "
    shown = f"\001\033[1;36m\002{prompt}\001\033[0m\002" if colour else prompt
    line = input(shown)
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{input('  ')}"
    return line.encode(errors="replace").decode().strip()  # keyboards can send bytes that are no text


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Keep keys typed meanwhile, `^C` too, off the screen; what was typed waits for the next prompt.

    SIGTERM leaves through here too, so that the terminal is never left silent or without its cursor.
    """
    if not sys.stdout.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdout)
    quiet = termios.tcgetattr(sys.stdout)
    quiet[3] &= ~termios.ECHO
    on_term = signal.signal(signal.SIGTERM, _leave)
    termios.tcsetattr(sys.stdout, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdout, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, on_term)


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _enable_editing() -> None:
    """Give input() arrow keys, history and pastes of several lines, where Python has readline."""
    try:
        import readline  # noqa: PLC0415  importing it is what changes input()
    except ImportError:
        return
    readline.parse_and_bind("set enable-bracketed-paste on")
