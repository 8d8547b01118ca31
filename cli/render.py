"""Shows an answer while it comes: Markdown on a terminal, plain text anywhere else.

On a terminal every piece is printed once, when it is final, and belongs to the scrollback from then on. Only
the unfinished end is redrawn in place, and never more of it than the screen holds.
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from cli.blocks import Block, BlockSplitter, CodeEnd, CodeLine, CodeStart, Piece
from cli.console import terminal
from cli.events import Content, Event, Reasoning, ToolCall
from cli.markdown import WIDTH, AnswerMarkdown, CodeHighlighter, code_end, code_start
from cli.sanitize import Sanitizer, one_line


class View(Protocol):
    """Shows the events of one answer, between entering and leaving it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, event: Event) -> None:
        """Take in the next event."""

    def refresh(self) -> None:
        """Bring the screen up to date; called several times a second."""


def view_on(console: Console) -> View:
    """Return the view that suits standard output."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console)
    return PlainView(sys.stdout, terminal(stderr=True))


class PlainView:
    """Writes the answer as it comes to `out`, and what is not the answer to `aside`."""

    def __init__(self, out: TextIO, aside: Console) -> None:
        self._out = out
        self._aside = aside
        self._answer = Sanitizer()
        self._thoughts = Sanitizer()
        self._end = "\n"
        self._thinking = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_thoughts()
        self._write("" if self._end == "\n" else "\n")

    def show(self, event: Event) -> None:
        """Write the event's text."""
        match event:
            case Content(text):
                self._end_thoughts()
                self._write(self._answer.feed(text))
            case Reasoning(text):
                self._thinking = True
                self._aside.print(Text(self._thoughts.feed(text), style="dim"), end="", soft_wrap=True)
            case ToolCall(name=name) if name:
                self._end_thoughts()
                self._aside.print(_tool_call(name))

    def refresh(self) -> None:
        """Nothing waits to be drawn."""

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
        self._end = text[-1:] or self._end

    def _end_thoughts(self) -> None:
        if self._thinking:
            self._aside.print()
        self._thinking = False


class LiveView:
    """Renders the answer on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._answer = Sanitizer()
        self._thoughts = Sanitizer()
        self._blocks = BlockSplitter()
        self._thought = ""
        self._code: CodeHighlighter | None = None
        self._started = time.monotonic()
        self._spinner: Spinner | None = Spinner("dots", style="cyan")
        self._gap_due = False
        self._live = Live(
            _Bottom(self._unfinished),  # looked up at every drawing, so that no print shows an outdated end
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spinner = None
        self._end_thoughts()
        self._print_pieces(self._blocks.close())
        self._live.stop()

    def show(self, event: Event) -> None:
        """Print what the event makes final; the rest waits for the next refresh."""
        if not isinstance(event, Content | Reasoning | ToolCall):
            return
        waited, self._spinner = self._spinner is not None, None
        match event:
            case Content(text):
                self._end_thoughts()
                self._print_pieces(self._blocks.feed(self._answer.feed(text)))
            case Reasoning(text):
                *lines, self._thought = (self._thought + self._thoughts.feed(text)).split("\n")
                self._print_thoughts(lines)
            case ToolCall(name=name) if name:
                self._end_thoughts()
                self._print_pieces(self._blocks.close())
                self._print_block(_tool_call(name))
        if waited:
            self.refresh()  # the first token is not kept waiting

    def refresh(self) -> None:
        """Redraw the unfinished end."""
        self._live.refresh()

    def _unfinished(self) -> RenderableType:
        if self._spinner:
            self._spinner.update(text=Text(f"{time.monotonic() - self._started:.0f} s", style="dim"))
            return self._spinner
        if self._thought:
            return _thought(self._thought)
        tail = self._blocks.tail()
        if isinstance(tail, CodeLine) and self._code:
            return self._code.line(tail.text, final=False)
        if isinstance(tail, Block):
            gap = self._gap_due and not tail.continues_list
            return Group(*[""] * gap, AnswerMarkdown(tail))
        return Group()

    def _end_thoughts(self) -> None:
        thought, self._thought = self._thought, ""
        if thought:
            self._print_thoughts([thought])

    def _print_thoughts(self, lines: list[str]) -> None:
        for line in lines:
            self._console.print(_thought(line), width=min(WIDTH, self._console.width))
            self._gap_due = True

    def _print_pieces(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            match piece:
                case CodeStart(language):
                    self._code = CodeHighlighter(language)
                    self._print_block(code_start(language))
                case CodeLine(text) if self._code:
                    self._console.print(self._code.line(text, final=True), soft_wrap=True)  # copies whole
                case CodeEnd():
                    self._console.print(code_end())
                case Block():
                    self._print_block(AnswerMarkdown(piece), gap=not piece.continues_list)

    def _print_block(self, renderable: RenderableType, gap: bool = True) -> None:
        if gap and self._gap_due:
            self._console.print()
        self._console.print(renderable, width=min(WIDTH, self._console.width))
        self._gap_due = True


class _Bottom:
    """The last lines of what `part` returns at the moment, as many as the screen holds."""

    def __init__(self, part: Callable[[], RenderableType]) -> None:
        self._part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(WIDTH, options.max_width)
        options = options.update(width=width, no_wrap=False, overflow="fold")  # whatever is printed above it
        lines = console.render_lines(self._part(), options, pad=False)
        for line in lines[-(console.size.height - 1) :]:
            yield from line
            yield Segment.line()


def _thought(line: str) -> Text:
    return Text(line, style="dim italic")


def _tool_call(name: str) -> Text:
    return Text(f"→ calls the tool {one_line(name)}", style="dim")
