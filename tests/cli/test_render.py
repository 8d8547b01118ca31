"""What a person sees of a streamed answer, scrollback included."""

import io
import re

import pytest
from rich.console import Console

from cli.console import THEME
from cli.events import Content, Event, Finish, Reasoning, Role, ToolCall
from cli.render import LiveView, PlainView
from tests.cli.screen import Screen

ANSWER = """\
# Rivers

The **Rhine** flows *north*, see [this](https://a.example/b) and `x = 1`.

1. one
1. two
   - inner

| a | b |
|---|--:|
| 1 | 22 |

```python
def f():
    return 1
```
> said

***

<b>end</b>
"""
RULE = "\u2500" * 70
SHOWN = f"""\
Rivers

The Rhine flows north, see this (https://a.example/b) and x = 1.

 1. one
 2. two
     \u2022 inner

 a   b
 \u2500\u2500\u2500\u2500\u2500
 1  22

\u256d\u2500 python
def f():
    return 1
\u2570\u2500

\u258c said

{RULE}

<b>end</b>
"""


def seen(*events: Event, height: int = 24, frames: bool = True) -> str:
    """Stream the events into a terminal 70 columns wide and return all its lines."""
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=70, height=height, theme=THEME, highlight=False, markup=False
    )
    with LiveView(console) as view:
        for event in events:
            view.show(event)
            if frames:
                view.refresh()
    screen = Screen(70)
    screen.write(out.getvalue().replace("\n", "\r\n"))  # as a terminal driver does
    return screen.text


def pieces(text: str, size: int) -> list[Event]:
    return [Content(text[start : start + size]) for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 50, 1000])
@pytest.mark.parametrize("height", [4, 24])
@pytest.mark.parametrize("frames", [True, False])
def test_markdown(size: int, height: int, frames: bool) -> None:
    """However it comes and however small the screen, the scrollback ends with every line once."""
    assert seen(*pieces(ANSWER, size), height=height, frames=frames) == SHOWN


@pytest.mark.parametrize("height", [3, 10])
def test_an_answer_longer_than_the_screen_keeps_every_line_once(height: int) -> None:
    code = [f"value_{number} = {number}" for number in range(120)]
    items = [f"item {number}" for number in range(120)]
    words = [f"word{number}" for number in range(300)]
    text = "\n".join(["```", *code, "```", *(f"- {item}" for item in items), "", " ".join(words)])
    shown = seen(*pieces(text, 11), height=height)
    lines = shown.splitlines()
    assert [line for line in lines if line.startswith("value_")] == code
    assert [line.removeprefix(" \u2022 ") for line in lines if line.startswith(" \u2022 ")] == items
    assert re.findall(r"word\d+", shown) == words


@pytest.mark.parametrize("cut", range(len(ANSWER)))
def test_an_answer_cut_off_anywhere_shows_all_its_words(cut: int) -> None:
    shown = seen(*pieces(ANSWER[:cut], 5))
    for word in re.findall(r"\b[A-Za-z]{3,}\b(?=\W)", ANSWER[:cut]):
        assert word in shown or word in {"https", "example"}, shown


def test_reasoning_comes_before_the_answer() -> None:
    events: list[Event] = [
        Role("assistant"),
        Reasoning("first li"),
        Reasoning("ne\nsecond"),
        Content("Answer."),
        Finish("stop"),
    ]
    assert seen(*events) == "first line\nsecond\n\nAnswer.\n"


def test_a_tool_call_is_named() -> None:
    events: list[Event] = [
        Content("Let me see."),
        ToolCall(0, "look\x1b[2J_up", ""),
        ToolCall(0, "", '{"a":1}'),
    ]
    assert seen(*events) == "Let me see.\n\n\u2192 calls the tool look_up\n"


def test_nothing_leaves_nothing() -> None:
    assert seen() == ""
    assert seen(Role("assistant"), Finish("stop")) == ""


def test_control_sequences_do_not_reach_the_terminal() -> None:
    shown = seen(*pieces("a\x1b]52;c;ZXZpbA==\x07b \x1b[2Jc\n\n```\n\x1b[31mred\x9b0m\n```", 1))
    assert shown == "ab c\n\n\u256d\u2500\nred\n\u2570\u2500\n"


def test_long_code_lines_are_left_to_the_terminal_so_that_they_copy_whole() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=70, height=24, theme=THEME, color_system=None)
    with LiveView(console) as view:
        view.show(Content("```\n" + "x" * 150 + "\n```\n"))
    assert "x" * 150 + "\n" in out.getvalue()


@pytest.mark.parametrize(
    ("events", "out", "aside"),
    [
        ([Content("a **b**"), Content("\nc")], "a **b**\nc\n", ""),
        ([Content("ends itself\n")], "ends itself\n", ""),
        ([Reasoning("hm"), Reasoning("m"), Content("a")], "a\n", "hmm\n"),
        ([Content("\x1b[1"), Content("mbold")], "bold\n", ""),
        ([ToolCall(0, "look_up", "{")], "", "\u2192 calls the tool look_up\n"),
        ([], "", ""),
    ],
)
def test_plain(events: list[Event], out: str, aside: str) -> None:
    answer, rest = io.StringIO(), io.StringIO()
    with PlainView(answer, Console(file=rest, theme=THEME, highlight=False)) as view:
        for event in events:
            view.show(event)
            view.refresh()
    assert (answer.getvalue(), rest.getvalue()) == (out, aside)
