"""Cuts streamed Markdown into pieces that will never change again, so each is printed once and scrolls away.

CommonMark decides block structure line by line and never reopens a closed block. So every top-level block but
the last is final, every item of an open list but the last, and every whole line of an open code fence.
"""

import re
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

# Rich would drop tags and link definitions; an answer shows all its words, so here they are plain text.
PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("reference")


@dataclass(frozen=True, slots=True)
class Block:
    """Markdown of one block or one list item. `number` is the item's, in a numbered list."""

    markdown: str
    number: int | None = None
    continues_list: bool = False


@dataclass(frozen=True, slots=True)
class CodeStart:
    """The opening of a code fence."""

    language: str


@dataclass(frozen=True, slots=True)
class CodeLine:
    """One line of code, without its line end."""

    text: str


@dataclass(frozen=True, slots=True)
class CodeEnd:
    """The end of a code fence, closed or cut off."""


Piece = Block | CodeStart | CodeLine | CodeEnd


class BlockSplitter:
    """Takes an answer in chunks; `feed` returns the pieces that are final, `tail` the rest as it stands."""

    def __init__(self) -> None:
        self._pending = ""
        self._fence: Token | None = None
        self._list_open = False
        self._number: int | None = None

    def feed(self, text: str) -> list[Piece]:
        """Add text and return what became final."""
        self._pending += text
        return self._take_final(ended=False) if "\n" in text else []

    def close(self) -> list[Piece]:
        """Return the rest; the answer has ended."""
        if self._pending and not self._pending.endswith("\n"):
            self._pending += "\n"
        pieces = self._take_final(ended=True)
        if self._fence:
            self._fence = None
            pieces.append(CodeEnd())
        return pieces

    def tail(self) -> Block | CodeLine | None:
        """Return what is not final yet."""
        if self._fence:
            return CodeLine(self._pending) if self._pending else None
        return self._block(self._pending) if self._pending.strip() else None

    def _take_final(self, ended: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while piece := self._code_piece() if self._fence else self._next_piece(ended):
            pieces.append(piece)
        return pieces

    def _next_piece(self, ended: bool) -> Piece | None:
        """Return the first piece of the pending lines if it is final."""
        lines = self._pending[: self._pending.rfind("\n") + 1]
        tokens = PARSER.parse(lines)
        blocks = [token for token in tokens if token.level == 0 and token.map]
        if not blocks:
            return None
        first = blocks[0]
        if first.type == "fence":
            self._leave_list()
            self._fence = first
            self._drop_lines(_start(first) + 1)
            return CodeStart(first.info.strip().partition(" ")[0])
        next_block = _start(blocks[1]) if len(blocks) > 1 else None
        if first.type in {"bullet_list_open", "ordered_list_open"}:
            return self._next_item(tokens, next_block, ended)
        if next_block is None and not ended:
            return None
        self._leave_list()
        return self._block(self._drop_lines(next_block))

    def _next_item(self, tokens: list[Token], next_block: int | None, ended: bool) -> Piece | None:
        """Return the first item of the list that the pending lines start with, if it is final."""
        opening = tokens[0]
        if not self._list_open and opening.type == "ordered_list_open":
            self._number = int(opening.attrs.get("start", 1))
        items = [token for token in tokens if token.type == "list_item_open" and token.level == 1]
        if len(items) > 1 and (next_block is None or _start(items[1]) < next_block):
            item = self._block(self._drop_lines(_start(items[1])))
            self._list_open = True
            self._number = None if self._number is None else self._number + 1
            return item
        if next_block is None and not ended:
            return None
        item = self._block(self._drop_lines(next_block))
        self._leave_list()
        return item

    def _code_piece(self) -> Piece | None:
        fence = self._fence
        line, end, rest = self._pending.partition("\n")
        if not fence or not end:
            return None
        self._pending = rest
        mark = re.escape(fence.markup[0])
        if re.fullmatch(rf" {{0,3}}{mark}{{{len(fence.markup)},}}\s*", line):
            self._fence = None
            return CodeEnd()
        return CodeLine(line)

    def _block(self, markdown: str) -> Block:
        return Block(markdown.strip("\n"), self._number, self._list_open)

    def _leave_list(self) -> None:
        self._list_open = False
        self._number = None

    def _drop_lines(self, count: int | None) -> str:
        """Take the first lines (all for None) off the pending text and return them."""
        lines = self._pending.split("\n")
        kept = lines[count:] if count is not None else []
        dropped = "\n".join(lines[: len(lines) - len(kept)])
        self._pending = "\n".join(kept)
        return dropped


def _start(token: Token) -> int:
    return token.map[0] if token.map else 0
