"""The table as an operator reads it: nothing is left out, and docs/fields.md shows it as it is."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serve_app.gateway.policy.entries import FEATURES
from serve_app.gateway.policy.listing import Section, markdown, sections
from serve_app.gateway.policy.responses import NO_STORE
from serve_app.gateway.policy.settings import MediaBounds, PolicyConfig
from serve_app.gateway.policy.table import table
from serve_app.gateway.routes import MODEL_ROUTES
from tests.unit.policy.door import CHAT

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "fields.md"
SECTIONS = sections(PolicyConfig())


def of(path: str, config: PolicyConfig | None = None) -> dict[str, tuple[str, str]]:
    """Verdict and words of each field of a route."""
    found = SECTIONS if config is None else sections(config)
    (section,) = (section for section in found if path in section.paths)
    return {line.field: (line.verdict, line.says) for line in section.lines}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve_app.gateway.policy", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_page_is_the_table() -> None:
    """`python -m serve_app.gateway.policy --markdown > docs/fields.md` writes it anew."""
    assert PAGE.read_text() == markdown(SECTIONS)


def test_every_route_and_every_field_is_listed() -> None:
    assert sorted(path for section in SECTIONS for path in section.paths) == sorted(MODEL_ROUTES)
    for path, policy in table(PolicyConfig()).items():
        assert set(policy.fields) <= set(of(path))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.paths[0])
def test_a_field_is_listed_once_with_its_verdict_in_words(section: Section) -> None:
    assert len({line.field for line in section.lines}) == len(section.lines)
    verdicts = {"allowed", "bounded", "removed", "set by us", "refused", *(f"feature `{name}`" for name in FEATURES)}
    assert {line.verdict for line in section.lines} <= verdicts
    assert [line for line in section.lines if not line.says] == []


@pytest.mark.parametrize(
    ("path", "field", "verdict", "says"),
    [
        (CHAT, "n", "bounded", "whole number, 1 to 4"),
        ("/api/chat", "top_p", "bounded", "number, above 0 to 1"),
        (CHAT, "seed", "bounded", "whole number of 64 bits"),
        (CHAT, "max_tokens", "bounded", "whole number from 1"),
        (CHAT, "stop", "bounded", "text of 1 to 64 characters; or list of at most 4 of: text of 1 to 64 characters"),
        (CHAT, "stream", "allowed", "true or false"),
        (CHAT, "user", "removed", "text of at most 64 characters"),
        (CHAT, "cache_salt", "set by us", "from the cache group of the key"),
        (CHAT, "echo", "refused", "the prompt is not scored; `false` may be sent, and changes nothing"),
        (CHAT, "ignore_eos", "feature `benchmark`", "true or false; `false` may be sent, and changes nothing"),
        (CHAT, "messages[].content[].type=video_url", "refused", "the service fetches nothing"),
        (CHAT, "messages[](tool).tool_call_id", "bounded", "text of 1 to 256 characters"),
        (CHAT, "messages[].content[](text|image_url).cache_control", "removed", "any object"),
        ("/v1/responses", "store", "set by us", "always `false`"),
        ("/v1/responses", "input[].type=item_reference", "refused", NO_STORE),
        ("/v1/messages", "stop_sequences", "bounded", "list of at most 4 of: text of 1 to 64 characters"),
        ("/v1/audio/translations", "file", "bounded", "one file, in a form of at most 20971520 bytes"),
        ("/detokenize", "tokens", "bounded", "list of at most 131072 of: whole number from 0"),
    ],
)
def test_what_is_said(path: str, field: str, verdict: str, says: str) -> None:
    assert of(path)[field] == (verdict, says)


def test_the_bounds_are_those_of_the_settings() -> None:
    own = PolicyConfig(choices=2, media=MediaBounds(body_bytes=5), chat_template_kwargs={"depth": "integer"})
    assert of("/v1/completions", own)["n"] == ("bounded", "whole number, 1 to 2")
    assert of("/v1/audio/transcriptions", own)["file"] == ("bounded", "one file, in a form of at most 5 bytes")
    fields = of("/v1/responses", own)
    assert [name for name in fields if name.startswith("chat_template_kwargs")] == [
        "chat_template_kwargs",
        "chat_template_kwargs.depth",
    ]


def test_the_module_prints_a_table_a_page_and_the_settings_of_a_service(tmp_path: Path) -> None:
    shown = run("--route", "/detokenize")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [line.split("│")[1].strip() for line in shown.stdout.splitlines() if line.startswith("│")] == [
        "model",
        "tokens",
    ]
    config = tmp_path / "serve.yaml"
    settings = {"gateway": {"policy": {"tokens": 7}}}
    config.write_text(yaml.safe_dump({"applications": [{"import_path": "serve_app.app:build", "args": settings}]}))
    page = run(str(config), "--route", "/detokenize", "--markdown")
    assert page.stdout == markdown([each for each in sections(PolicyConfig(tokens=7)) if each.paths == ["/detokenize"]])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["/no/such.yaml"], 1, "/no/such.yaml: no such file"), (["--route", "/v2"], 2, "there is no route /v2")],
)
def test_what_it_cannot_print(arguments: list[str], code: int, message: str) -> None:
    shown = run(*arguments)
    assert (shown.returncode, shown.stdout) == (code, "")
    assert message in shown.stderr
