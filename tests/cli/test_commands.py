"""The program as scripts use it: exact output, exact exit codes, against a real service."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from tests.cli.program import run
from tests.cli.service import KEY, Service, Stream, delta, ending, frame, healthy, refuses, says
from tests.cli.terminal import ROOT


def figures(text: str) -> str:
    return re.sub(r"\d+\.\d+", "N", text)


def test_a_piped_prompt_gets_just_the_answer(service: Service) -> None:
    service.answers.append(says("Hel", "lo **you**", "\x1b[2J!"))
    result = run("chat", stdin="say hello\n")
    assert (result.exit_code, result.stdout) == (0, "Hello **you**!\n"), result.stderr
    assert re.fullmatch(r"TTFT \d+\.\d\d s( · \d+\.\d tok/s)? · 3 tokens\n", result.stderr)
    assert service.asked == [
        {
            "model": "demo",
            "messages": [{"role": "user", "content": "say hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_once_with_every_option(service: Service) -> None:
    service.answers.append(says("ok"))
    options = ["--system", "Brief.", "--temperature", "0", "--max-tokens", "9", "--model", "other"]
    result = run("chat", "--once", "hi", "--no-stats", *options)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "ok\n", "")
    assert service.asked == [
        {
            "model": "other",
            "messages": [{"role": "system", "content": "Brief."}, {"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "max_tokens": 9,
        }
    ]


def test_bytes_that_are_no_text_are_replaced(service: Service) -> None:
    service.answers.append(says("ok"))
    assert run("chat", stdin=b"caf\xff").exit_code == 0
    assert service.asked[0]["messages"][0]["content"] == "caf\N{REPLACEMENT CHARACTER}"


def test_the_default_model_is_the_first_that_can_chat(service: Service) -> None:
    service.cards.insert(0, {"id": "bge"})
    health = healthy()
    health["details"]["models"].append({"id": "bge", "status": "ready", "tasks": ["embed"]})
    service.healths[0] = health
    service.answers.append(says("ok"))
    assert run("chat", "--once", "hi").exit_code == 0
    assert service.asked[0]["model"] == "demo"


CUT = Stream([delta(content="half")])
BROKEN = Stream([delta(content="half"), frame({"error": {"message": "The replica\ndied.", "code": 500}})])


@pytest.mark.parametrize(
    ("answer", "failure"),
    [(CUT, "the connection ended before the answer did"), (BROKEN, "The replica died")],
)
def test_an_answer_that_breaks_off_is_kept_and_fails(service: Service, answer: Stream, failure: str) -> None:
    service.answers.append(answer)
    result = run("chat", "--once", "hi", "--no-stats")
    assert (result.exit_code, result.stdout) == (1, "half\n")
    assert result.stderr == f"✗ The answer broke off: {failure}.\n  What came is above.\n"


def test_an_answer_cut_at_the_token_limit_says_so(service: Service) -> None:
    service.answers.append(Stream([delta(content="a"), ending(1, finish="length")]))
    result = run("chat", "--once", "hi")
    assert (result.exit_code, result.stdout) == (0, "a\n")
    assert figures(result.stderr) == "TTFT N s · 1 token · stopped at the token limit\n"


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        (
            refuses(503, "model_loading", "Model demo is loading.", "7"),
            ["✗ Model demo is loading.", "  `vllm-chat health --wait 300` returns when it can."],
        ),
        (
            PlainTextResponse("no server available", 503),
            [
                "✗ The service cannot take requests now.",
                "  `vllm-chat health --wait 300` returns when it can.",
            ],
        ),
        (
            refuses(429, "rate_limit_exceeded", "Over 60 requests a minute.", "7"),
            ["✗ Over 60 requests a minute.", "  Try again in 7 s."],
        ),
        (
            refuses(503, "model_failed", "Model demo does not start.", final=True),
            ["✗ The service failed (503).", "  Model demo does not start."],
        ),
        (
            refuses(429, "rate_limit_exceeded", "This is more than a minute's tokens.", final=True),
            ["✗ The service refused the request (429).", "  This is more than a minute's tokens."],
        ),
        (refuses(429, "x", "", "9999"), ["✗ Too many requests with this key.", "  Try again in 60 s."]),
        (refuses(429, "x", "", "soon"), ["✗ Too many requests with this key.", "  Try again in 5 s."]),
        (
            refuses(404, "model_not_found", "gone"),
            ["✗ The service has no model 'demo'.", "  Models it has: demo, other."],
        ),
        (
            refuses(400, "context_length_exceeded", "The prompt is \x1b[2Jtoo\nlong."),
            ["✗ The service refused the request (400).", "  The prompt is too long."],
        ),
        (HTMLResponse("<h1>oops</h1>", 502), ["✗ The service failed (502)."]),
        (
            PlainTextResponse("hello"),
            [
                "✗ URL/chat/completions answered 200, but not as an OpenAI-compatible service does.",
                "  Check OPENAI_BASE_URL; it usually ends in /v1.",
            ],
        ),
    ],
)
def test_refusals(service: Service, answer: Response, lines: list[str]) -> None:
    service.cards.append({"id": "other"})
    service.answers.append(answer)
    result = run("chat", "--once", "hi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.replace(service.url, "URL").splitlines() == lines


@pytest.mark.parametrize("command", [["chat", "--once", "hi"], ["models"]])
def test_the_key(service: Service, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    result = run(*command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "✗ The service refused the key from OPENAI_API_KEY.\n"
        "  Set OPENAI_API_KEY to a key of this service, or unset it so that PROXY_API_KEY counts.\n"
    )
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run(*command).stderr == (
        "✗ The service wants a key, and there is none.\n"
        "  Set OPENAI_API_KEY, or run in the checkout: `make run` writes a key to .env.\n"
    )
    Path(".env").write_text(f"PROXY_API_KEY={KEY}\n")
    service.answers.append(says("ok"))
    assert run(*command).exit_code == 0


def test_nothing_answers(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        root = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("OPENAI_BASE_URL", f"{root}/v1")
        for command in (["chat", "--once", "hi"], ["models"], ["health"], ["health", "--json"]):
            result = run(*command)
            assert (result.exit_code, result.stdout) == (1, "")
            assert result.stderr == (
                f"✗ Nothing answers at {root}.\n"
                "  Start the service with `make run`, or point OPENAI_BASE_URL at one that runs.\n"
            )


def test_a_proxy_of_the_environment_does_not_see_local_requests(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert run("models").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["chat"], " \n", "the prompt is empty"),
        (["chat", "--once", ""], None, "the prompt is empty"),
        (["chat", "--temperature", "3", "--once", "x"], None, "--temperature"),
        (["chat", "--max-tokens", "0", "--once", "x"], None, "--max-tokens"),
        (["health", "--wait", "-1"], None, "--wait"),
        (["chat", "--api-key", "k"], None, "--api-key"),
        (["talk"], None, "talk"),
    ],
)
def test_wrong_usage(service: Service, arguments: list[str], stdin: str | None, message: str) -> None:
    result = run(*arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert service.asked == []


def test_an_unusable_address_is_wrong_usage(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost")
    result = run("models")
    assert (result.exit_code, result.stderr) == (
        2,
        "✗ OPENAI_BASE_URL is not an http address.\n  Give it the form http://127.0.0.1:8787/v1\n",
    )


@pytest.mark.parametrize("command", [[], ["chat"], ["models"], ["health"]])
def test_help_teaches(command: list[str]) -> None:
    text = run(*command, "--help").stdout
    assert "  vllm-chat " in text
    assert "Exit codes: 0" in text or "OPENAI_BASE_URL" in text


def test_help_loads_nothing_heavy() -> None:
    heavy = {"httpx", "pygments", "rich.markdown", "ray", "vllm", "serve_app"}
    check = f"import sys, cli.main; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_output_in_an_encoding_without_the_characters(service: Service) -> None:
    service.answers.append(says("caf\u00e9 \u4f60"))
    done = subprocess.run(
        [sys.executable, "-m", "cli", "chat", "--once", "hi"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"caf? ?\n")


def test_a_reader_that_leaves_ends_it_quietly(service: Service) -> None:
    service.answers.append(says("line\n", *["x" * 100 + "\n"] * 3000))  # more than a pipe holds
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m cli chat --once hi | head -1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"line\n", b"")
