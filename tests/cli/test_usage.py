"""`vllm-chat usage` against a real service: exact tables, CSV, JSON, questions and exit codes."""

import json
import re
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, Response

from tests.cli.program import run
from tests.cli.service import Service, refuses
from tests.cli.terminal import program

NOTHING = {
    "requests": 0,
    "prompt_tokens": 0,
    "cached_tokens": 0,
    "output_tokens": 0,
    "reasoning_tokens": 0,
    "failed": 0,
    "aborted": 0,
    "refused": 0,
    "ttft_avg_s": None,
}
DEMO = {
    "group": "demo",
    "requests": 1204,
    "prompt_tokens": 1234567,
    "cached_tokens": 40,
    "output_tokens": 10,
    "reasoning_tokens": 4,
    "failed": 1,
    "aborted": 2,
    "refused": 3,
    "ttft_avg_s": 0.2049,
}
OTHER = NOTHING | {"group": "other", "requests": 1}
CRASH = {"at": "2026-01-31T12:00:00.25Z", "rows": None}
DROPPED = {"at": "2026-01-31T13:00:00Z", "rows": 1200}


def usage(*totals: dict[str, Any], by: str = "model", gaps: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "by": by,
        "key": None,
        "model": None,
        "since": "2026-01-24T12:00:00Z",
        "until": None,
        "data": list(totals),
        "total": NOTHING
        | {name: sum(total[name] for total in totals) for name in NOTHING if name != "ttft_avg_s"}
        | {"group": "total"},
        "gaps": list(gaps),
    }


def test_a_table(service: Service) -> None:
    service.usage = usage(DEMO, OTHER | {"group": "other\x1b[2J"})
    result = run("usage")
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "model  requests     prompt  cached  output  reasoning  failed  aborted  refused    ttft",
        "demo      1,204  1,234,567      40      10          4       1        2        3  0.20 s",
        "other         1          0       0       0          0       0        0        0       -",
        "total     1,205  1,234,567      40      10          4       1        2        3       -",
    ]
    assert (result.exit_code, result.stderr) == (0, "")
    assert service.asked == [{"by": "day"}]


def test_what_nothing_was_counted_of_has_no_column(service: Service) -> None:
    service.usage = usage(OTHER)
    assert [line.rstrip() for line in run("usage").stdout.splitlines()] == [
        "model  requests  prompt  output  ttft",
        "other         1       0       0     -",
        "total         1       0       0     -",
    ]


def test_every_option_is_asked(service: Service) -> None:
    service.usage = usage(by="key")
    options = [
        "--key",
        "k1",
        "--model",
        "a/b",
        "--since",
        "9999w",
        "--until",
        "2026-01-31T12:00:00+01:00",
        "--by",
        "key",
    ]
    assert run("usage", *options).exit_code == 0
    assert service.asked == [
        {"by": "key", "key": "k1", "model": "a/b", "since": "9999w", "until": "2026-01-31T12:00:00+01:00"}
    ]


def test_csv(service: Service) -> None:
    service.usage = usage(DEMO, OTHER | {"group": 'a,"b"'}, gaps=(DROPPED,))
    result = run("usage", "--csv")
    assert result.exit_code == 0
    assert result.stdout == (
        "model,requests,prompt_tokens,cached_tokens,output_tokens,reasoning_tokens,failed,aborted,refused,ttft_avg_s\n"
        "demo,1204,1234567,40,10,4,1,2,3,0.2049\n"
        '"a,""b""",1,0,0,0,0,0,0,0,\n'
    )
    assert result.stderr == (
        "! The ledger's database was away: 1,200 requests up to 2026-01-31 13:00:00 UTC are missing.\n"
    )


def test_json(service: Service) -> None:
    service.usage = usage(DEMO, gaps=(DROPPED,))
    result = run("usage", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, usage(DEMO, gaps=(DROPPED,)))


def test_a_crash_is_told(service: Service) -> None:
    service.usage = usage(gaps=(CRASH,))
    assert run("usage").stderr == (
        "! A gateway ended without closing its ledger: "
        "up to one second of requests after 2026-01-31 12:00:00 UTC may be missing.\n"
    )


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        (refuses(404, "not_found", "x"), ["✗ ROOT keeps no usage ledger.", "  Its operator can switch it on."]),
        (
            refuses(400, "invalid_value", "`key` may only be your own key's id."),
            ["✗ The service refused the request (400).", "  `key` may only be your own key's id."],
        ),
        (
            PlainTextResponse("hello"),
            [
                "✗ ROOT/api/usage?by=day answered 200, but not as an OpenAI-compatible service does.",
                "  Check OPENAI_BASE_URL; it usually ends in /v1.",
            ],
        ),
    ],
)
def test_refusals(service: Service, answer: Response, lines: list[str]) -> None:
    service.usage = answer
    result = run("usage")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.replace(service.url.removesuffix("/v1"), "ROOT").splitlines() == lines


def test_a_wrong_key(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    result = run("usage")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "refused the key from OPENAI_API_KEY" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--since", "yesterday"], "give a date (2026-01-31), a time, or an age"),
        (["--until", "7"], "--until"),
        (["--by", "hour"], "--by"),
        (["--csv", "--json"], "--csv and --json exclude each other"),
        (["--since", "2026-02-30"], "give a date (2026-01-31), a time, or an age"),
        (["--until", "0001-01-01T00:00+23:00"], "give a date (2026-01-31), a time, or an age"),
        (["--since", "2026-02-01", "--until", "2026-02-01T00:00Z"], "--until must be later than --since"),
        (["--since", "1h", "--until", "2h"], "--until must be later than --since"),
        (["--key", ""], "give 1 to 128 printable characters"),
        (["--model", "a\tb"], "give 1 to 128 printable characters"),
        (["--bye", "key"], "No such option"),
    ],
)
def test_wrong_usage(service: Service, options: list[str], message: str) -> None:
    result = run("usage", *options)
    assert (result.exit_code, result.stdout, service.asked) == (2, "", [])
    assert message in result.stderr


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours(service: Service, environ: dict[str, str], coloured: bool) -> None:
    service.usage = usage(DEMO, gaps=(CRASH,))
    with program("usage", width=100, environ=environ) as terminal:
        assert terminal.wait_for_end() == 0
    assert "1,234,567" in terminal.screen.text
    assert bool(re.search(r"\x1b\[(?:\d+;)*[349]\d", terminal.raw)) is coloured


def test_no_figure_is_cut_short_on_a_narrow_terminal(service: Service) -> None:
    service.usage = usage(DEMO)
    with program("usage", width=60) as terminal:
        assert terminal.wait_for_end() == 0
    assert "…" not in terminal.screen.text


def test_help_teaches() -> None:
    shown = run("usage", "--help").stdout
    assert "  vllm-chat usage --since 7d --by model\n" in "".join(f"{line.rstrip()}\n" for line in shown.splitlines())
    assert "Exit codes: 0" in shown
