"""Takes terminal control sequences out of text that others wrote, before a terminal can obey it."""

import re

_CSI = r"(?:\x1b\[|\x9b)[ -?]*"  # colours, cursor, screen: parameters, then one letter
_STRING = r"(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*"  # title, clipboard: up to a terminator
_ESCAPE = r"\x1b[ -/]*"  # any other escape: intermediates, then one character
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"  # with bidirectional overrides
_REMOVED = re.compile(rf"{_CSI}[@-~]?|{_STRING}(?:[\x07\x9c]|\x1b\\)?|{_ESCAPE}[0-~]?|{_CONTROL}")
_UNFINISHED = re.compile(rf"(?:{_CSI}|{_STRING}\x1b?|{_ESCAPE})\Z")


class Sanitizer:
    """Keeps printable text, tabs and newlines of one stream, wherever its chunks are cut.

    A sequence that never ends costs at most the rest of its own line.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Return what of the text so far may reach a terminal now; an unfinished sequence waits."""
        text = self._held + text
        unfinished = _UNFINISHED.search(text)
        end = unfinished.start() if unfinished else len(text)
        self._held = text[end:]
        return _REMOVED.sub("", text[:end])


def sanitize(text: str) -> str:
    """Return a whole text without anything that a terminal would obey."""
    return Sanitizer().feed(text)


def one_line(text: str) -> str:
    """Return a message from the service as one clean line."""
    return " ".join(sanitize(text).split())
