"""Headers and bodies that are refused before any field is looked at, and bodies of any kind at all."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.gateway.errors import GatewayError, Headers, HeadersTooLarge
from serve_app.gateway.policy.check import Policy
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.replies import error_body
from serve_app.gateway.routes import MODEL_ROUTES
from tests.unit.policy.door import CHAT, DEFAULT, JSON, LEAST, caller, check, error_of

FORM = "/v1/audio/transcriptions"
HI = b'{"messages": [{"role": "user", "content": "Hi"}]%s}'


def answer(error: GatewayError) -> tuple[int, str, str | None]:
    return error.status, error.code, error.param


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x", b"a" * 16_384)],
        [(b"x", b"")] * 100,
        [(b"a" * 16_384, b"")],
    ],
    ids=["value", "count", "name"],
)
def test_too_many_headers(headers: Headers) -> None:
    error = error_of(CHAT, HI % b"", headers=[*JSON, *headers])
    assert answer(error) == (431, "headers_too_large", None)


def test_a_head_may_be_as_large_as_the_setting_says() -> None:
    policy = Policy(PolicyConfig(header_bytes=100, headers=2), b"")
    policy.check_head(b"/" * 50, [(b"name", b"v" * 42)])
    with pytest.raises(HeadersTooLarge):
        policy.check_head(b"/" * 51, [(b"name", b"v" * 42)])
    policy.check_head(b"/", [(b"a", b""), (b"b", b"")])
    with pytest.raises(HeadersTooLarge):
        policy.check_head(b"/", [(b"a", b""), (b"b", b""), (b"c", b"")])


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (CHAT, [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]),
        (CHAT, [(b"content-type", b"application/json"), (b"content-encoding", b"identity, br")]),
        (CHAT, [(b"content-type", b"text/plain")]),
        (CHAT, [(b"content-type", b"application/x-www-form-urlencoded")]),
        (CHAT, [(b"content-type", b"multipart/form-data; boundary=x")]),
        (CHAT, [(b"content-type", b"application/jsonx")]),
        (CHAT, [(b"content-type", b"")]),
        (FORM, [(b"content-type", b"application/json")]),
        (FORM, []),
    ],
)
def test_other_content_types_and_encodings(path: str, headers: Headers) -> None:
    assert answer(error_of(path, HI % b"", headers=headers)) == (415, "unsupported_media_type", None)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"application/json; charset=utf-8")],
        [(b"content-type", b"Application/JSON"), (b"content-encoding", b"identity")],
    ],
)
def test_the_usual_headers(headers: Headers) -> None:
    assert not check(CHAT, HI % b"", headers=headers).bounded


def test_a_body_has_a_size() -> None:
    config = PolicyConfig(body_bytes=1000)
    room = b" " * (1000 - len(HI % b""))
    assert check(CHAT, HI % room, config=config)
    assert answer(error_of(CHAT, HI % (room + b" "), config=config)) == (413, "request_too_large", None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"a"',
        b"\xff",
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b"{} {}",
        b"{'a': 1}",
        b'{"a": "\x00"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        HI % (b', "tools": ' + b"[" * 32 + b"]" * 32),
        HI % b', "n": 1, "n": 1',
        HI % b', "metadata": {"a": "b", "a": "c"}',
        HI % b', "messages": []',
        HI % b', "temperature": NaN',
        HI % b', "temperature": Infinity',
        HI % b', "temperature": -Infinity',
        HI % b', "temperature": 1e999',
        HI % (b', "seed": ' + b"1" * 100_000),
        HI % (b', "seed": -' + b"1" * 100_000),
        HI % (b', "seed": ' + b"1" * 41),
        HI % (b', "temperature": ' + b"1" * 100_000 + b".5"),
        HI % b', "user": "\\ud800"',
        HI % b', "user": "\\udc00\\ud800"',
        HI % b', "\\ud800": 1',
        HI % b', "metadata": {"\\udfff": "a"}',
    ],
)
def test_json_that_is_not_safe_to_read(body: bytes) -> None:
    error = error_of(CHAT, body)
    assert answer(error) == (400, "invalid_json", None)
    assert error_body(error, "openai")


def test_json_may_be_32_levels_deep() -> None:
    def body(levels: int) -> bytes:
        value: Any = {}
        for _ in range(levels - 6):
            value = {"a": value}
        tool = {"type": "function", "function": {"name": "t", "parameters": {"a": value}}}
        return json.dumps({**LEAST[CHAT], "tools": [tool]}).encode()

    assert check(CHAT, body(32))
    assert answer(error_of(CHAT, body(33))) == (400, "invalid_json", None)


def test_brackets_in_a_string_are_no_levels() -> None:
    assert check(CHAT, json.dumps({"messages": [{"role": "user", "content": "[" * 100_000}]}).encode())


def test_pairs_of_surrogates_are_characters() -> None:
    checked = check(CHAT, HI % b', "stop": "\\ud83d\\ude00"')
    assert json.loads(checked.body)["stop"] == "\U0001f600"


def test_big_numbers_inside_free_json_are_kept() -> None:
    parameters = {"default": 10**39, "minimum": -0.5}
    tool = {"type": "function", "function": {"name": "t", "parameters": parameters}}
    body = json.dumps({**LEAST[CHAT], "tools": [tool]}).encode()
    assert json.loads(check(CHAT, body).body)["tools"][0]["function"]["parameters"] == parameters


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = sorted({name for body in LEAST.values() for name in body} | {"tools", "stop", "logit_bias", "tool_choice"})
MANY = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def require_an_error_at_most(path: str, body: bytes, headers: Headers = JSON) -> None:
    try:
        checked = check(path, body, caller("benchmark", "grammar", "prefill", "token_ids"), headers=headers)
    except GatewayError as refusal:
        error = refusal
    else:
        assert path == FORM or isinstance(json.loads(checked.body), dict)
        return
    assert 400 <= error.status < 500
    assert json.loads(error_body(error, "openai"))["error"]["message"]


@MANY
@given(st.sampled_from(sorted(LEAST)), st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), ANYTHING))
def test_any_json_passes_or_is_refused(path: str, fields: dict[str, Any]) -> None:
    require_an_error_at_most(path, json.dumps(fields).encode())
    require_an_error_at_most(path, json.dumps({**LEAST[path], **fields}).encode())


@MANY
@given(st.binary(max_size=64), st.sampled_from([CHAT, FORM]))
def test_any_bytes_pass_or_are_refused(body: bytes, path: str) -> None:
    headers = [(b"content-type", b"multipart/form-data; boundary=x")] if path == FORM else JSON
    require_an_error_at_most(path, body, headers)


def part(name: str, text: str, more: str = "") -> str:
    return f'--x\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n{text}\r\n'


FILE = part("file", "RIFF", '; filename="a.wav"')


def form(*parts: str) -> bytes:
    return ("".join([*parts, "--x--\r\n"])).encode()


MULTIPART: Headers = [(b"content-type", b"multipart/form-data; boundary=x")]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], (400, "invalid_value", "file")),
        ([part("file", "RIFF")], (400, "invalid_value", "file")),
        ([FILE, part("colour", "red")], (400, "unknown_parameter", "colour")),
        ([FILE, part("vllm_xargs", "{}")], (400, "unsupported_parameter", "vllm_xargs")),
        ([FILE, part("use_beam_search", "true")], (400, "unsupported_parameter", "use_beam_search")),
        ([FILE, part("n", "2")], (400, "unsupported_parameter", "n")),
        ([FILE, part("temperature", "nan")], (400, "invalid_value", "temperature")),
        ([FILE, part("temperature", "9" * 5000)], (400, "invalid_value", "temperature")),
        ([FILE, part("response_format", "xml")], (400, "invalid_value", "response_format")),
        ([FILE, part("stream", "maybe")], (400, "invalid_value", "stream")),
        ([FILE, part("model", "a"), part("model", "b")], (400, "invalid_value", "model")),
        ([FILE, FILE], (400, "invalid_value", None)),
    ],
)
def test_forms(parts: list[str], expected: tuple[int, str, str | None]) -> None:
    assert answer(error_of(FORM, form(*parts), headers=MULTIPART)) == expected


def test_a_form_passes_as_it_is() -> None:
    body = form(
        part("model", "whisper"),
        part("temperature", "0.2"),
        part("n", "1"),
        part("stream", "true"),
        part("timestamp_granularities[]", "word"),
        part("timestamp_granularities[]", "segment"),
        FILE,
    )
    assert check(FORM, body, headers=MULTIPART)[:4] == (body, False, 1, 1)


async def test_the_model_of_a_form_is_read_before_anything_is_checked() -> None:
    body = form(part("model", "whisper"), part("colour", "red"), FILE)
    assert (await DEFAULT.read(MODEL_ROUTES[FORM], MULTIPART, body)).model == "whisper"


def test_a_form_without_a_boundary() -> None:
    headers = [(b"content-type", b"multipart/form-data")]
    assert answer(error_of(FORM, form(FILE), headers=headers)) == (400, "invalid_value", None)


def test_the_length_of_a_forms_answer_is_bounded() -> None:
    limited = caller(max_tokens=20)
    over = form(FILE, part("max_completion_tokens", "21"))
    assert answer(error_of(FORM, over, limited, headers=MULTIPART)) == (400, "invalid_value", "max_completion_tokens")
    own = form(FILE, part("max_completion_tokens", "20"))
    assert check(FORM, own, limited, headers=MULTIPART)[:4] == (own, True, 1, 1)
    bounded = check(FORM, form(FILE), limited, headers=MULTIPART)
    assert bounded.body == form(part("max_completion_tokens", "20"), FILE)
    assert check(FORM, bounded.body, limited, headers=MULTIPART).bounded
