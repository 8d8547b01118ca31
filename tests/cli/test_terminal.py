"""The program as a person uses it: a real pseudo-terminal, real keys, the screen they leave."""

import re
import signal

import pytest

from tests.cli.service import Gate, Service, Stream, delta, ending, healthy, refuses, says
from tests.cli.terminal import CTRL_C, CTRL_D, Terminal, program


def screen(terminal: Terminal, service: Service) -> list[str]:
    """Return the lines of the screen, with the address and measured figures replaced."""
    text = re.sub(r"\d+\.\d+ s", "N s", terminal.screen.text)
    text = re.sub(r"~?\d+\.\d+ tok/s · ", "", text)
    return text.replace(service.url.removesuffix("/v1"), "URL").rstrip("\n").split("\n")


HEAD = ["demo at URL. /help for commands, Ctrl+D to leave.", ""]


def test_a_conversation(service: Service) -> None:
    service.answers.extend([says("I am **fine**."), says("Fi", "ne ", "again.")])
    with program("chat") as terminal:
        terminal.wait_for_prompt(1)
        terminal.type("how are you?\r")
        terminal.wait_for_prompt(2)
        terminal.type("and \\\rnow?\r")
        terminal.wait_for_prompt(3)
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert screen(terminal, service) == [
        *HEAD,
        "\u203a how are you?",
        "",
        "I am fine.",
        "TTFT N s · 1 token",
        "",
        "\u203a and \\",
        "  now?",
        "",
        "Fine again.",
        "TTFT N s · 3 tokens",
        "",
        "\u203a",
    ]
    assert service.asked[1]["messages"] == [
        {"role": "user", "content": "how are you?"},
        {"role": "assistant", "content": "I am **fine**."},
        {"role": "user", "content": "and \nnow?"},
    ]


def test_ctrl_c_stops_the_answer_and_keeps_it(service: Service) -> None:
    endless = Stream([delta(content="Half an "), delta(content="answer"), Gate()])
    service.answers.extend([endless, says("ok")])
    with program("chat") as terminal:
        terminal.wait_for_prompt(1)
        terminal.type("go\r")
        terminal.wait_for("Half an answer")
        assert not terminal.echoes()
        terminal.type(CTRL_C)
        terminal.wait_for_prompt(2)
        assert endless.left.wait(20), "the service still generates"
        terminal.type("on\r")
        terminal.wait_for_prompt(3)
        assert terminal.wait_for_end(pressing=CTRL_C) == 0
    assert screen(terminal, service)[2:8] == [
        "\u203a go",
        "",
        "Half an answer",
        "TTFT N s · ~2 tokens · interrupted",
        "",
        "\u203a on",
    ]
    assert [turn["content"] for turn in service.asked[1]["messages"]] == ["go", "Half an answer", "on"]


def test_ctrl_c_before_the_first_token_takes_the_question_back(service: Service) -> None:
    silent = Stream([delta(role="assistant"), Gate()])
    service.answers.extend([silent, says("ok")])
    with program("chat") as terminal:
        terminal.wait_for_prompt(1)
        terminal.type("first\r")
        assert silent.begun.wait(20)
        terminal.type(CTRL_C)
        terminal.wait_for_prompt(2)
        assert silent.left.wait(20), "the service still generates"
        terminal.type("/retry\r")
        terminal.wait_for_prompt(3)
    assert screen(terminal, service)[2:] == [
        "\u203a first",
        "",
        "interrupted",
        "",
        "\u203a /retry",
        "",
        "ok",
        "TTFT N s · 1 token",
        "",
        "\u203a",
    ]
    assert [turn["content"] for turn in service.asked[1]["messages"]] == ["first"]


def test_ctrl_c_in_a_single_answer_is_130(service: Service) -> None:
    service.answers.append(Stream([delta(content="Half"), Gate()]))
    with program("chat", "--once", "go") as terminal:
        terminal.wait_for("Half")
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 130
        assert screen(terminal, service) == ["Half", "TTFT N s · ~1 token · interrupted"]


def test_ctrl_c_while_health_waits_is_130(service: Service) -> None:
    service.healths[0] = healthy(status="loading") | {"status": "loading", "model_loaded": False}
    with program("health", "--wait", "600") as terminal:
        terminal.wait_for("demo loading")
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 130


def test_a_loading_model_is_waited_for(service: Service) -> None:
    loading = refuses(503, "model_loading", "Model demo is loading.", "1")
    service.answers.extend([loading, says("ready")])
    with program("chat", "--no-stats") as terminal:
        terminal.wait_for_prompt(1)
        terminal.type("hi\r")
        terminal.wait_for("Model demo is loading. Trying again in 1 s; Ctrl+C gives up.")
        terminal.wait_for_prompt(2)
    assert screen(terminal, service) == [*HEAD, "\u203a hi", "", "ready", "", "\u203a"]


def test_waiting_for_a_loading_model_can_be_given_up(service: Service) -> None:
    service.answers.append(refuses(503, "model_loading", "Model demo is loading.", "60"))
    with program("chat") as terminal:
        terminal.wait_for_prompt(1)
        terminal.type("hi\r")
        terminal.wait_for("Trying again in 60 s")
        terminal.type(CTRL_C)
        terminal.wait_for_prompt(2)
    assert screen(terminal, service) == [*HEAD, "\u203a hi", "", "interrupted", "", "\u203a"]


def test_slash_commands(service: Service) -> None:
    service.cards.append({"id": "other"})
    service.answers.extend([says("a1"), says("a2"), says("a3"), says("a4")])
    lines = ["/retry", "one", "/retry", "/system Be brief.", "/model other", "/model", "two", "/clear"]
    lines += ["/model nope", "/usr/bin is a path", "/nope", "/help", "/quit"]
    with program("chat", "--no-stats", height=80) as terminal:
        for count, line in enumerate(lines, start=1):
            terminal.wait_for_prompt(count)
            terminal.type(f"{line}\r")
        assert terminal.wait_for_end() == 0
    assert screen(terminal, service)[2:] == [
        *("\u203a /retry", "Nothing has been asked yet.", ""),
        *("\u203a one", "", "a1", ""),
        *("\u203a /retry", "", "a2", ""),
        *("\u203a /system Be brief.", "System prompt: Be brief.", ""),
        *("\u203a /model other", "other answers from here on.", ""),
        *("\u203a /model", "demo  other", ""),
        *("\u203a two", "", "a3", ""),
        *("\u203a /clear", "The conversation starts anew.", ""),
        *("\u203a /model nope", "✗ The service has no model 'nope'.", "  Models it has: demo, other.", ""),
        *("\u203a /usr/bin is a path", "", "a4", ""),
        *("\u203a /nope", "There is no /nope. /help lists what there is.", ""),
        "\u203a /help",
        "  /model [NAME]   list the models, or let another one answer",
        "  /system [TEXT]  show or set the system prompt",
        "  /clear          forget the conversation",
        "  /retry          ask the last question again",
        "  /help           this list",
        "  /quit           leave, like Ctrl+D",
        "  Ctrl+C          stop the answer and keep what came",
        "  \\ at the end    go on with the message on the next line",
        "",
        "\u203a /quit",
    ]
    contents = [(body["model"], [turn["content"] for turn in body["messages"]]) for body in service.asked]
    assert contents == [
        ("demo", ["one"]),
        ("demo", ["one"]),
        ("other", ["Be brief.", "one", "a2", "two"]),
        ("other", ["Be brief.", "/usr/bin is a path"]),
    ]


def test_an_error_leads_back_to_the_prompt(service: Service) -> None:
    service.answers.extend([refuses(429, "x", "Over the limit.", "3"), Stream([delta(content="half")]), says("whole")])
    with program("chat", "--no-stats") as terminal:
        for count, line in enumerate(["one", "two", "/retry"], start=1):
            terminal.wait_for_prompt(count)
            terminal.type(f"{line}\r")
        terminal.wait_for_prompt(4)
    assert screen(terminal, service)[2:] == [
        *("\u203a one", "", "✗ Over the limit.", "  Try again in 3 s.", ""),
        *("\u203a two", "", "half"),
        "✗ The answer broke off: the connection ended before the answer did.",
        *("  What came is kept. /retry asks again.", ""),
        *("\u203a /retry", "", "whole", "", "\u203a"),
    ]
    assert [turn["content"] for turn in service.asked[2]["messages"]] == ["two"]


def test_a_pasted_text_of_several_lines_is_one_message(service: Service) -> None:
    service.answers.append(says("ok"))
    with program("chat", "--no-stats") as terminal:
        terminal.wait_for_prompt(1)
        terminal.type("\x1b[200~one\ntwo\x1b[201~\r")
        terminal.wait_for("ok")
    assert service.asked[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color(service: Service, environ: dict[str, str], coloured: bool) -> None:
    service.answers.append(Stream([delta(content="`code`\n\n```python\nx = 1\n```\n"), ending(4)]))
    with program("chat", environ=environ) as terminal:
        terminal.wait_for_prompt(1)
        terminal.type("hi\r")
        terminal.wait_for_prompt(2)
        colours = re.findall(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d|10\d)(?:;\d+)*m", terminal.raw)
    assert bool(colours) is coloured


def test_a_dumb_terminal_gets_plain_text(service: Service) -> None:
    service.answers.append(says("I am ", "**fine**."))
    with program("chat", "--once", "hi", "--no-stats", environ={"TERM": "dumb"}) as terminal:
        assert terminal.wait_for_end() == 0
        assert terminal.raw == "I am **fine**.\r\n"


def test_the_cursor_is_back_after_a_lost_connection(service: Service) -> None:
    gate = Gate()
    service.answers.append(Stream([delta(content="half"), gate]))
    with program("chat") as terminal:
        terminal.wait_for_prompt(1)
        terminal.type("go\r")
        terminal.wait_for("half")
        gate.open()
        terminal.wait_for_prompt(2)
        assert terminal.raw.count("\x1b[?25l") == terminal.raw.count("\x1b[?25h")


def test_terminated_while_it_answers(service: Service) -> None:
    endless = Stream([delta(content="half"), Gate()])
    service.answers.append(endless)
    with program("chat") as terminal:
        terminal.wait_for_prompt(1)
        terminal.type("go\r")
        terminal.wait_for("half")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait_for_end() == 128 + signal.SIGTERM
        assert terminal.echoes()
        assert terminal.raw.count("\x1b[?25l") == terminal.raw.count("\x1b[?25h")  # cursor hidden, shown
        assert endless.left.wait(20), "the service still generates"
