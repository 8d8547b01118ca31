"""What is closed and what is bounded holds on every route, whatever else it takes."""

import json
import re
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from serve_app.gateway.errors import GatewayError, Headers
from serve_app.gateway.policy.entries import FEATURES
from serve_app.gateway.policy.listing import Line, sections
from serve_app.gateway.policy.settings import MediaBounds, PolicyConfig
from serve_app.gateway.policy.table import table
from serve_app.gateway.routes import MODEL_ROUTES
from tests.unit.policy.door import CHAT, JSON, LEAST, caller, check, error_of, passed, refused
from tests.unit.policy.test_bodies import FILE, MULTIPART, form, part
from tests.unit.policy.test_table import MODELS

FORMS = [path for path, route in MODEL_ROUTES.items() if route.multipart]
TABLE = table(PolicyConfig())
ALL = caller(*FEATURES)
"""Whose key has every feature there is."""


def test_the_routes_here_are_all_there_are() -> None:
    assert sorted([*LEAST, *FORMS]) == sorted(MODEL_ROUTES)


CLOSED: dict[str, Any] = {
    "allowed_token_ids": list(range(1025)),
    "bad_words": ["a"] * 129,
    "best_of": 2,
    "cache_salt": "another's",
    "chat_template": "{{ 7 * 7 }}",
    "data_parallel_rank": 1,
    "ec_transfer_params": {"a": 1},
    "echo": True,
    "image_embeds": "AAAA",
    "kv_transfer_params": {"prompt_token_ids": [1]},
    "logits_processors": ["os.system"],
    "lora_request": {"a": 1},
    "media_io_kwargs": {"image": {}},
    "mm_payload": {"a": 1},
    "mm_processor_kwargs": {"code_revision": "x"},
    "priority": -1,
    "prompt_embeds": "AAAA",
    "prompt_logprobs": 1,
    "repetition_detection": {"a": 1},
    "request_id": "mine",
    "return_prompt_text": True,
    "session_id": "mine",
    "stop_token_ids": [1] * 129,
    "stream_interval": 8,
    "trace_decode_token_ids": [1],
    "use_beam_search": True,
    "vllm_xargs": {"a": 1},
}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("path", LEAST)
def test_what_is_closed_is_closed_on_every_route_to_every_key(path: str, name: str) -> None:
    status, code, param = refused(path, {name: CLOSED[name]}, ALL)
    assert (status, param) == (400, name)
    assert code in {"unknown_parameter", "unsupported_parameter"}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("path", FORMS)
def test_what_is_closed_is_closed_in_forms(path: str, name: str) -> None:
    value = CLOSED[name]
    text = value if isinstance(value, str) else json.dumps(value)
    error = error_of(path, form(FILE, part(name, text)), ALL, headers=MULTIPART)
    assert (error.status, error.param) == (400, name)
    assert error.code in {"unknown_parameter", "unsupported_parameter"}


@pytest.mark.parametrize("path", LEAST)
def test_lengths_above_which_an_engine_dies_are_out_of_reach(path: str) -> None:
    bias = {"logit_bias": {str(token): 1 for token in range(1025)}}
    assert refused(path, bias, ALL)[::2] == (400, "logit_bias")
    assert refused(path, {"chat_template_kwargs": {"tools": []}}, ALL)[0] == 400


@pytest.mark.parametrize(("name", "value"), [("ignore_eos", True), ("min_tokens", 1)])
@pytest.mark.parametrize("path", LEAST)
def test_an_answer_is_lengthened_for_benchmarks_only(path: str, name: str, value: object) -> None:
    assert refused(path, {name: value}, caller(*FEATURES - {"benchmark"}))[::2] == (400, name)
    if name in TABLE[MODEL_ROUTES[path].path].fields and path != "/v1/responses":
        assert passed(path, {name: value}, caller("benchmark"))[name] == value


LINK = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
EMBEDS = {"type": "image_embeds", "image_embeds": "AAAA"}
SEEING = PolicyConfig(media=MediaBounds(models=["*"]))


def with_part(path: str, part: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A body with a content part, and the path to it."""
    if path in {"/v1/rerank", "/v1/score"}:
        return {"documents": {"content": [part]}}, "documents.content.0"
    content = [{"role": "user", "content": [part]}]
    if path == "/v1/responses":
        return {"input": content}, "input.0.content.0"
    return {"messages": content}, "messages.0.content.0"


WITH_PARTS = [path for path in LEAST if path not in {"/v1/completions", "/detokenize"}]


@pytest.mark.parametrize("path", WITH_PARTS)
def test_nothing_is_fetched_on_any_route(path: str) -> None:
    link: dict[str, Any] = LINK
    inside, code = ".image_url.url", "invalid_image_url"
    if path == "/v1/responses":
        link, inside = {"type": "input_image", "image_url": "http://169.254.169.254/"}, ".image_url"
    elif path.startswith("/v1/messages"):
        link = {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}
        inside, code = ".source.type", "unsupported_parameter"
    body, place = with_part(path, link)
    assert refused(path, body, ALL, SEEING) == (400, code, place + inside)


@pytest.mark.parametrize("path", WITH_PARTS)
def test_embeddings_are_not_read_on_any_route(path: str) -> None:
    body, place = with_part(path, EMBEDS)
    status, _, param = refused(path, body, ALL, SEEING)
    assert (status, param) == (400, f"{place}.type")


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"[]",
        b'{"model": "a", "model": "b"}',
        b'{"model": NaN}',
        b'{"x": -Infinity}',
        b'{"x": 1e999}',
        b'{"x": ' + b"9" * 41 + b"}",
        b'{"x": "\\ud800"}',
        b'{"x": ' + b"[" * 32 + b"]" * 32 + b"}",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("path", LEAST)
def test_every_route_reads_json_strictly(path: str, body: bytes) -> None:
    error = error_of(path, body)
    assert (error.status, error.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/xml")],
        [*JSON, (b"content-encoding", b"gzip")],
        [*MULTIPART, (b"content-encoding", b"gzip")],
    ],
)
@pytest.mark.parametrize("path", MODEL_ROUTES)
def test_every_route_has_one_content_type_and_no_encoding(path: str, headers: Headers) -> None:
    error = error_of(path, b"{}", headers=headers)
    assert (error.status, error.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize("path", LEAST)
def test_every_body_of_json_has_a_size(path: str) -> None:
    body = json.dumps(LEAST[path]).encode()
    assert check(path, body, config=PolicyConfig(body_bytes=len(body))).body
    error = error_of(path, body + b" ", config=PolicyConfig(body_bytes=len(body)))
    assert (error.status, error.code) == (413, "request_too_large")


NUMBERS = [
    (path, name)
    for path in LEAST
    for name, rule in TABLE[MODEL_ROUTES[path].path].fields.items()
    if rule.kinds == {int, float}
]
NOT_NUMBERS: list[Any] = [True, False, "1", "", [1], {}, {"a": 1}]
TOO_LARGE: list[Any] = [10**38, -(10**38), 2**63, -(2**63) - 1, 1e308, -1e308, 1e19]


def test_there_are_numbers_to_bound() -> None:
    assert len(NUMBERS) > 60
    assert {(CHAT, "n"), ("/v1/messages", "max_tokens"), ("/v1/rerank", "top_n")} <= set(NUMBERS)


@pytest.mark.parametrize(("path", "name"), NUMBERS)
def test_every_number_is_a_number_within_bounds(path: str, name: str) -> None:
    for value in NOT_NUMBERS + TOO_LARGE:
        assert refused(path, {name: value}, ALL) == (400, "invalid_value", name), value


@pytest.mark.parametrize(("path", "name"), NUMBERS)
def test_a_whole_number_has_no_fraction(path: str, name: str) -> None:
    (line,) = (line for line in lines(path) if line.field == name)
    if line.says.startswith("whole"):
        assert refused(path, {name: 1.5}, ALL) == (400, "invalid_value", name)


REFUSED = "refused"


def read_by_vllm(path: str, name: str, value: object) -> object:
    """What vLLM makes of the value of a field, unless it or the policy refuses it."""
    (model,) = MODELS[MODEL_ROUTES[path].path]
    try:
        return getattr(model.model_validate(passed(path, {"model": "m", name: value}, ALL)), name)
    except (GatewayError, VLLMValidationError):
        return REFUSED


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, name in NUMBERS if len(MODELS[MODEL_ROUTES[path].path]) == 1]
)
def test_negative_zero_is_zero_or_refused(path: str, name: str) -> None:
    assert read_by_vllm(path, name, -0.0) in {read_by_vllm(path, name, 0), REFUSED}


def lines(path: str) -> list[Line]:
    """The fields at the top of a route's body."""
    (section,) = (section for section in sections(PolicyConfig()) if path in section.paths)
    return [line for line in section.lines if not set(line.field) & set(".[(")]


LISTS = [
    (path, line.field, int(most[1]))
    for path in LEAST
    for line in lines(path)
    if (most := re.search(r"list of (?:at most|\d+ to) (\d+) of", line.says)) and line.verdict != "removed"
]
TEXTS = [
    (path, line.field, int(most[1]))
    for path in LEAST
    for line in lines(path)
    if (most := re.match(r"text of (?:at most|\d+ to) (\d+) characters", line.says))
]


def test_there_are_lists_and_texts_to_bound() -> None:
    assert {(CHAT, "messages", 1024), (CHAT, "stop", 4), (CHAT, "tools", 128)} <= set(LISTS)
    assert {("/v1/completions", "prompt", 16), ("/v1/rerank", "documents", 2048)} <= set(LISTS)
    assert {(CHAT, "stop", 64), (CHAT, "model", 256), ("/v1/score", "instruction", 4096)} <= set(TEXTS)


@pytest.mark.parametrize(("path", "name", "most"), LISTS)
def test_every_list_has_a_length(path: str, name: str, most: int) -> None:
    assert refused(path, {name: ["a"] * (most + 1)}, ALL) == (400, "invalid_value", name)


@pytest.mark.parametrize(("path", "name", "most"), TEXTS)
def test_every_text_that_is_no_prompt_has_a_length(path: str, name: str, most: int) -> None:
    assert refused(path, {name: "a" * (most + 1)}, ALL) == (400, "invalid_value", name)
