"""A terminal reduced to what the program uses: enough to say which text a person sees, line by line."""

import re

_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b[=>]|\x1b\][^\x07]*\x07")


class Screen:
    """Lines from the first one written, scrollback included. Colours are dropped."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._lines: list[list[str]] = [[]]
        self._row = 0
        self._column = 0

    @property
    def lines(self) -> list[str]:
        return ["".join(line).rstrip() for line in self._lines]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def write(self, text: str) -> None:
        """Take in output; a control sequence must not be cut."""
        position = 0
        for match in _CONTROL.finditer(text):
            self._print(text[position : match.start()])
            self._obey(match[2] or "", match[1] or "")
            position = match.end()
        self._print(text[position:])

    def _print(self, text: str) -> None:
        for character in text:
            if character == "\n":
                self._move(self._row + 1, self._column)
            elif character == "\r":
                self._column = 0
            elif character == "\b":
                self._column = max(0, self._column - 1)
            elif character >= " ":
                self._put(character)

    def _put(self, character: str) -> None:
        if self._column == self._width:
            self._move(self._row + 1, 0)
        line = self._lines[self._row]
        line.extend(" " * (self._column + 1 - len(line)))
        line[self._column] = character
        self._column += 1

    def _move(self, row: int, column: int) -> None:
        self._row, self._column = row, column
        while len(self._lines) <= row:
            self._lines.append([])

    def _obey(self, letter: str, parameters: str) -> None:
        if letter == "A":
            assert self._row >= int(parameters or 1), "moved above the first line"
            self._row -= int(parameters or 1)
        elif letter == "C":
            self._column += int(parameters or 1)
        elif letter == "K":
            del self._lines[self._row][0 if parameters == "2" else self._column :]
        elif letter == "J":
            del self._lines[self._row][self._column :]
            del self._lines[self._row + 1 :]
        else:
            assert letter in {"", "m", "h", "l"}, f"unexpected control sequence {parameters}{letter}"
