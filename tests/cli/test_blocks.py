"""An answer is cut into pieces that later text never changes."""

import pytest

from cli.blocks import Block, BlockSplitter, CodeEnd, CodeLine, CodeStart, Piece

ANSWER = """\
# Title

A paragraph of
two lines.
- one
- two

  still two
  - nested

7. seven
7. eight
   ```sh
   inside an item
   ```
* other

| a | b |
|---|---|
| 1 | 2 |
```python title
def f():

    return "```"
```
~~~~
```
~~~~
<b>tags</b> stay

[1]: https://example.org

> quote

last"""

PIECES: list[Piece] = [
    Block("# Title"),
    Block("A paragraph of\ntwo lines."),
    Block("- one"),
    Block("- two\n\n  still two\n  - nested", continues_list=True),
    Block("7. seven", number=7),
    Block("7. eight\n   ```sh\n   inside an item\n   ```", number=8, continues_list=True),
    Block("* other"),
    Block("| a | b |\n|---|---|\n| 1 | 2 |"),
    CodeStart("python"),
    CodeLine("def f():"),
    CodeLine(""),
    CodeLine('    return "```"'),
    CodeEnd(),
    CodeStart(""),
    CodeLine("```"),
    CodeEnd(),
    Block("<b>tags</b> stay"),
    Block("[1]: https://example.org"),
    Block("> quote"),
    Block("last"),
]


def split(*chunks: str) -> list[Piece]:
    splitter = BlockSplitter()
    return [*(piece for chunk in chunks for piece in splitter.feed(chunk)), *splitter.close()]


def test_a_whole_answer() -> None:
    assert split(ANSWER) == PIECES


def test_cut_anywhere() -> None:
    for cut in range(len(ANSWER) + 1):
        assert split(ANSWER[:cut], ANSWER[cut:]) == PIECES, cut


def test_character_by_character() -> None:
    assert split(*ANSWER) == PIECES


def test_lines_of_code_do_not_wait_for_the_end_of_the_fence() -> None:
    splitter = BlockSplitter()
    assert splitter.feed("```c\nint a;\nint") == [CodeStart("c"), CodeLine("int a;")]
    assert splitter.tail() == CodeLine("int")


def test_list_items_do_not_wait_for_the_end_of_the_list() -> None:
    splitter = BlockSplitter()
    assert splitter.feed("3. a\n4. b\n5. c") == [Block("3. a", number=3)]
    assert splitter.tail() == Block("4. b\n5. c", number=4, continues_list=True)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("\n\n", []),
        ("```py\nx = 1", [CodeStart("py"), CodeLine("x = 1"), CodeEnd()]),
        ("```py\nx = 1\n", [CodeStart("py"), CodeLine("x = 1"), CodeEnd()]),
        ("```", [CodeStart(""), CodeEnd()]),
        ("1. a\n2.", [Block("1. a", number=1), Block("2.", number=2, continues_list=True)]),
        ("| a |\n|---|\n| 1", [Block("| a |\n|---|\n| 1")]),
        ("words **bold", [Block("words **bold")]),
    ],
)
def test_an_answer_cut_off_loses_nothing(text: str, pieces: list[Piece]) -> None:
    assert split(text) == pieces


def test_the_tail_is_what_no_piece_has() -> None:
    splitter = BlockSplitter()
    assert splitter.tail() is None
    assert splitter.feed("one\n\ntw") == []
    assert splitter.tail() == Block("one\n\ntw")
    assert splitter.feed("o\n") == [Block("one")]
    assert splitter.tail() == Block("two")
