"""How the pieces of an answer look: Rich's Markdown, in the terminal's own colours and easy to copy from."""

from collections import deque
from typing import ClassVar

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, MarkdownElement
from rich.rule import Rule
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from cli.blocks import PARSER, Block

WIDTH = 100  # prose wider than this is hard to read
CONTEXT_LINES = 30  # code before a line that its colours may depend on, as inside a docstring
CODE_THEME = "ansi_dark"


class _Numbered(ListItem):
    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        """Render as ` 1. text`, so that items printed one by one line up."""
        mark = f"{number:>2}. "
        style = console.get_style("markdown.item.number")
        lines = console.render_lines(self.elements, options.update(width=options.max_width - len(mark)))
        for line in lines:
            yield Segment(mark, style)
            yield from line
            yield Segment.line()
            mark = " " * len(mark)


class _Code(CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render like a streamed fence: a mark above and below, nothing beside the code."""
        yield code_start(self.lexer_name)
        yield Syntax(str(self.text).rstrip(), self.lexer_name, theme=self.theme, word_wrap=True)
        yield code_end()


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}  # to the left, all of them


class _Rule(MarkdownElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style="markdown.hr")


class AnswerMarkdown(Markdown):
    """One block of an answer, without blank lines around it."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = Markdown.elements | {
        "heading_open": _Heading,
        "hr": _Rule,
        "list_item_open": _Numbered,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, block: Block) -> None:
        super().__init__("", code_theme=CODE_THEME, hyperlinks=False)  # a link shows where it really leads
        self.parsed = PARSER.parse(block.markdown)
        if block.number is not None and self.parsed and self.parsed[0].type == "ordered_list_open":
            self.parsed[0].attrs["start"] = block.number

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render; Rich puts blank lines before lists and around tables, and here the caller spaces blocks."""
        segments = (item for item in super().__rich_console__(console, options) if isinstance(item, Segment))
        lines = list(Segment.split_lines(segments))
        while lines and _is_blank(lines[0]):
            del lines[0]
        while lines and _is_blank(lines[-1]):
            del lines[-1]
        for line in lines:
            yield from line
            yield Segment.line()


class CodeHighlighter:
    """Colours the lines of one fence one by one."""

    def __init__(self, language: str) -> None:
        self._syntax = Syntax("", language or "text", theme=CODE_THEME)
        self._context: deque[str] = deque(maxlen=CONTEXT_LINES)

    def line(self, code: str, final: bool) -> Text:
        """Return the line in colour; only a final one becomes context for the next."""
        block = [*self._context, code]
        if final:
            self._context.append(code)
        return self._syntax.highlight("\n".join(block)).split("\n", allow_blank=True)[len(block) - 1]


def code_start(language: str) -> Text:
    """Return the mark above code."""
    return Text(f"╭─ {language}".rstrip(), style="dim")


def code_end() -> Text:
    """Return the mark below code."""
    return Text("╰─", style="dim")


def _is_blank(line: list[Segment]) -> bool:
    return not "".join(segment.text for segment in line).strip()
