"""Nothing that a terminal obeys gets through, wherever a sequence is cut."""

import pytest

from cli.sanitize import Sanitizer, one_line, sanitize

CORPUS = [
    ("plain text\twith\na newline", "plain text\twith\na newline"),
    (
        "caf\u00e9 \u4f60\u597d \U0001f30d \u05e9\u05dc\u05d5\u05dd",
        "caf\u00e9 \u4f60\u597d \U0001f30d \u05e9\u05dc\u05d5\u05dd",
    ),
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b[38;2;1;2;3mrgb", "rgb"),
    ("\x1b[2J\x1b[Hgone", "gone"),
    ("\x9b31mc1", "c1"),
    ("\x1b]0;title\x07after", "after"),
    ("\x1b]52;c;ZXZpbA==\x1b\\after", "after"),
    ("\x9d0;title\x9cafter", "after"),
    ("\x1bP1$r0m\x1b\\after", "after"),
    ("\x1b_app\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\after", "after"),
    ("\x1b(Bcharset\x1bcreset\x1b7save", "charsetresetsave"),
    ("over\rwrite\x08\x7f\x00\x07\x0b\x0c!", "overwrite!"),
    ("line\r\nend", "line\nend"),
    ("\x1b]8;;http://evil\x07link\x1b]8;;\x07", "link"),
    ("never ends \x1b]0;title\nnext line", "never ends \nnext line"),
    ("\x1b[12\nnext", "\nnext"),
    ("\x1b\x1b[1mtwice", "twice"),
    ("\x1b[1\x1b[1mtwice", "twice"),
    ("admin\u202etxt.exe\u202c \u2066iso\u2069", "admintxt.exe iso"),
    ("ends in \x1b", "ends in "),
    ("ends in \x1b[3", "ends in "),
    ("ends in \x1b]0;t", "ends in "),
]


@pytest.mark.parametrize(("text", "safe"), CORPUS)
def test_whole(text: str, safe: str) -> None:
    assert sanitize(text) == safe


@pytest.mark.parametrize(("text", "safe"), CORPUS)
def test_cut_anywhere(text: str, safe: str) -> None:
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            sanitizer = Sanitizer()
            pieces = (text[:first], text[first:second], text[second:])
            assert "".join(sanitizer.feed(piece) for piece in pieces) == safe, (first, second)


def test_every_pair_of_control_characters_is_removed() -> None:
    """Exhaustive over what can start or continue a sequence: no control character survives, cut or whole."""
    parts = ["\x1b", "[", "]", "\\", "\x07", "\x9b", "\x9d", "\x9c", "1", "m", "\r", "\x00", "a"]
    for text in (a + b + c + d for a in parts for b in parts for c in parts for d in parts):
        whole = sanitize(text)
        assert whole.isprintable(), ascii(text)
        sanitizer = Sanitizer()
        assert "".join(sanitizer.feed(character) for character in text) == whole, ascii(text)


def test_one_line() -> None:
    assert one_line("  two\n\x1b[1mlines ") == "two lines"
