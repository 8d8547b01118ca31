"""What callers may not set, and how far they may set the rest."""

import json
from typing import Any

import pytest

from serve_app.gateway.policy.settings import PolicyConfig
from tests.unit.policy.door import CHAT, LEAST, USER, caller, check, error_of, passed, refused

UNSUPPORTED = (400, "unsupported_parameter")
INVALID = (400, "invalid_value")
SCHEMA = (400, "invalid_schema")
# On the other routes one of several sets of fields will do, and vLLM tells which.
REQUIRED = [
    (path, name)
    for path, body in LEAST.items()
    for name in body
    if path not in {"/v1/embeddings", "/v1/score", "/tokenize"}
]


def message(path: str, fields: dict[str, Any]) -> str:
    return str(error_of(path, json.dumps({**LEAST[path], **fields}).encode()))


@pytest.mark.parametrize("path", LEAST)
def test_the_least_body_passes_and_an_unknown_field_does_not(path: str) -> None:
    assert passed(path, {}).items() >= LEAST[path].items()
    assert refused(path, {"colour": "red"}) == (400, "unknown_parameter", "colour")
    assert refused(path, {"colour": None}) == (400, "unknown_parameter", "colour")


@pytest.mark.parametrize(("path", "name"), REQUIRED)
def test_required_fields(path: str, name: str) -> None:
    assert refused(path, {}, without=[name]) == (*INVALID, name)
    assert refused(path, {name: None}) == (*INVALID, name)


def test_an_unknown_field_is_found_at_every_depth() -> None:
    assert refused(CHAT, {"messages": [USER, {**USER, "mood": 1}]}) == (400, "unknown_parameter", "messages.1.mood")
    assert refused(CHAT, {"stream_options": {"x": True}}) == (400, "unknown_parameter", "stream_options.x")
    part = {"type": "text", "text": "a", "x": 1}
    found = refused(CHAT, {"messages": [{"role": "user", "content": [part]}]})
    assert found == (400, "unknown_parameter", "messages.0.content.0.x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache_salt", "mine"),
        ("priority", 0),
        ("request_id", "mine"),
        ("session_id", "mine"),
        ("kv_transfer_params", {"prompt_token_ids": [1]}),
        ("ec_transfer_params", {}),
        ("vllm_xargs", {"a": 1}),
        ("mm_processor_kwargs", {"code_revision": "x"}),
        ("media_io_kwargs", {}),
        ("chat_template", "{{ 1 }}"),
        ("mm_payload", {}),
        ("return_mm_kwargs", True),
        ("return_token_offsets", True),
        ("return_prompt_text", True),
        ("routed_experts_prompt_start", 1),
        ("watermarking", {}),
        ("stream_interval", 8),
        ("use_beam_search", True),
        ("length_penalty", 2.0),
        ("best_of", 2),
        ("echo", True),
        ("prompt_logprobs", 1),
        ("logprob_token_ids", [1]),
        ("stop_token_ids", [1]),
        ("bad_words", ["a"]),
        ("allowed_token_ids", [1]),
        ("logits_processors", ["os.system"]),
        ("repetition_detection", {}),
        ("truncate_prompt_tokens", 4),
        ("truncation_side", "left"),
        ("add_special_tokens", True),
        ("add_generation_prompt", False),
        ("continue_final_message", True),
        ("documents", [{}]),
        ("structured_outputs", {"regex": "a*"}),
        ("guided_json", {}),
        ("guided_regex", "a*"),
        ("guided_grammar", "root ::= 'a'"),
        ("guided_choice", ["a"]),
        ("return_token_ids", True),
        ("return_tokens_as_token_ids", True),
        ("ignore_eos", True),
        ("min_tokens", 1),
        ("functions", []),
        ("function_call", "auto"),
        ("web_search_options", {}),
        ("audio", {}),
        ("prediction", {}),
    ],
)
def test_what_callers_may_not_set(name: str, value: object) -> None:
    assert refused(CHAT, {name: value}) == (*UNSUPPORTED, name)
    assert name not in passed(CHAT, {name: None})


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("/v1/completions", "suffix", "a"),
        ("/v1/completions", "prompt_embeds", "a"),
        ("/v1/completions", "cache_salt", "a"),
        ("/v1/completions", "kv_transfer_params", {}),
        ("/v1/responses", "background", True),
        ("/v1/responses", "previous_response_id", "resp_1"),
        ("/v1/responses", "conversation", "conv_1"),
        ("/v1/responses", "enable_response_messages", True),
        ("/v1/responses", "prompt", {"id": "p"}),
        ("/v1/responses", "priority", 1),
        ("/v1/messages", "kv_transfer_params", {}),
        ("/v1/messages", "cache_salt", "a"),
        ("/v1/messages", "mcp_servers", [{}]),
        ("/v1/messages", "container", "c"),
        ("/v1/messages/count_tokens", "context_management", {}),
        ("/v1/embeddings", "cache_salt", "a"),
        ("/v1/embeddings", "mm_processor_kwargs", {}),
        ("/v1/embeddings", "chat_template", "a"),
        ("/v1/rerank", "priority", 1),
        ("/v1/score", "request_id", "a"),
        ("/tokenize", "chat_template", "a"),
        ("/tokenize", "media_io_kwargs", {}),
    ],
)
def test_what_callers_of_other_routes_may_not_set(path: str, name: str, value: object) -> None:
    assert refused(path, {name: value}) == (*UNSUPPORTED, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("best_of", 1), ("echo", False), ("use_beam_search", False), ("ignore_eos", False), ("min_tokens", 0)],
)
def test_a_value_that_changes_nothing_may_be_sent(name: str, value: object) -> None:
    assert passed(CHAT, {name: value}).get(name, value) == value


@pytest.mark.parametrize(
    ("name", "most", "over", "limit"),
    [
        ("n", 4, 5, "4"),
        ("top_logprobs", 20, 21, "20"),
        ("temperature", 2, 2.1, "2"),
        ("temperature", 0, -0.1, "0"),
        ("top_p", 1, 0, "0"),
        ("top_p", 0.1, 1.1, "1"),
        ("top_k", -1, -2, "-1"),
        ("min_p", 1, 1.5, "1"),
        ("presence_penalty", 2, 3, "2"),
        ("frequency_penalty", -2, -3, "-2"),
        ("repetition_penalty", 2, 0, "0"),
        ("seed", 2**63 - 1, 2**63, str(2**63 - 1)),
        ("max_tokens", 1, 0, "1"),
        ("max_completion_tokens", 2**63 - 1, 10**20, str(2**63 - 1)),
        ("thinking_token_budget", 131_072, 131_073, "131072"),
        ("stop", ["a"] * 4, ["a"] * 5, "4"),
        ("user", "u" * 64, "u" * 65, "64"),
        ("messages", [USER] * 1024, [USER] * 1025, "1024"),
        ("messages", [USER], [], "1"),
    ],
)
def test_bounds(name: str, most: object, over: object, limit: str) -> None:
    assert name == "user" or passed(CHAT, {name: most})[name] == most
    assert refused(CHAT, {name: over}) == (*INVALID, name)
    assert limit in message(CHAT, {name: over})


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("stop", "s" * 65, "stop"),
        ("stop", "", "stop"),
        ("stop", ["a", "s" * 65], "stop.1"),
        ("logit_bias", {str(token): 1 for token in range(301)}, "logit_bias"),
        ("logit_bias", {"5": 101}, "logit_bias.5"),
        ("logit_bias", {"-1": 1}, "logit_bias.-1"),
        ("logit_bias", {"a": 1}, "logit_bias.a"),
        ("metadata", {str(number): "a" for number in range(17)}, "metadata"),
        ("metadata", {"k" * 65: "a"}, "metadata." + "k" * 64),
        ("metadata", {"k": "v" * 513}, "metadata.k"),
        ("n", True, "n"),
        ("n", "2", "n"),
        ("stream", 1, "stream"),
        ("temperature", "1", "temperature"),
        ("messages", "Hi", "messages"),
        ("messages", [{"role": "robot", "content": "a"}], "messages.0.role"),
        ("messages", [{"content": "a"}], "messages.0.role"),
        ("messages", [{"role": "user"}], "messages.0.content"),
        ("messages", [{"role": "user", "content": []}], "messages.0.content"),
        ("messages", [{"role": "tool", "content": "a"}], "messages.0.tool_call_id"),
        ("tools", [], "tools"),
        ("tools", [{"type": "function", "function": {"name": "t"}}] * 129, "tools"),
        ("tools", [{"type": "function", "function": {"name": "a b"}}], "tools.0.function.name"),
        ("tools", [{"type": "function", "function": {"name": "t", "description": "d" * 262_144}}], "tools"),
        ("model", "", "model"),
        ("model", "m" * 257, "model"),
        ("model", 3, "model"),
    ],
)
def test_bounds_of_what_is_inside(name: str, value: object, param: str) -> None:
    assert refused(CHAT, {name: value}) == (*INVALID, param)


def test_completions_take_a_few_prompts() -> None:
    path = "/v1/completions"
    assert passed(path, {"prompt": ["a"] * 16})["prompt"] == ["a"] * 16
    assert refused(path, {"prompt": ["a"] * 17}) == (*INVALID, "prompt")
    assert refused(path, {"prompt": ""}) == (*INVALID, "prompt")
    assert refused(path, {"prompt": []}) == (*INVALID, "prompt")
    assert refused(path, {"logprobs": 21}) == (*INVALID, "logprobs")


def test_responses_are_never_stored() -> None:
    for store in (True, False, None):
        assert passed("/v1/responses", {"store": store})["store"] is False
    assert passed("/v1/responses", {})["store"] is False


@pytest.mark.parametrize("kind", ["web_search", "mcp", "code_interpreter", "file_search", "image_generation"])
def test_the_service_runs_no_tools(kind: str) -> None:
    assert refused("/v1/responses", {"tools": [{"type": kind}]}) == (*UNSUPPORTED, "tools.0.type")


@pytest.mark.parametrize(
    ("path", "name", "value", "error"),
    [
        ("/v1/responses", "input", [{"type": "item_reference", "id": "a"}], (*UNSUPPORTED, "input.0.type")),
        ("/v1/messages", "tools", [{"type": "bash_20250124", "name": "bash"}], (*INVALID, "tools.0.type")),
        ("/v1/messages", "max_tokens", 0, (*INVALID, "max_tokens")),
        ("/v1/messages", "stop_sequences", ["a"] * 5, (*INVALID, "stop_sequences")),
        ("/v1/embeddings", "input", ["a"] * 2049, (*INVALID, "input")),
        ("/v1/embeddings", "dimensions", 0, (*INVALID, "dimensions")),
        ("/v1/rerank", "documents", ["a"] * 2049, (*INVALID, "documents")),
        ("/detokenize", "tokens", [1] * 131_073, (*INVALID, "tokens")),
        ("/detokenize", "tokens", [-1], (*INVALID, "tokens.0")),
        ("/detokenize", "tokens", [True], (*INVALID, "tokens.0")),
    ],
)
def test_bounds_of_other_routes(path: str, name: str, value: object, error: tuple[int, str, str]) -> None:
    assert refused(path, {name: value}) == error


def test_template_variables_are_a_list_of_the_operator() -> None:
    assert passed(CHAT, {"chat_template_kwargs": {"enable_thinking": False}})["chat_template_kwargs"] == {
        "enable_thinking": False
    }
    assert refused(CHAT, {"chat_template_kwargs": {"tools": []}}) == (*UNSUPPORTED, "chat_template_kwargs.tools")
    found = refused(CHAT, {"chat_template_kwargs": {"enable_thinking": "{{x}}"}})
    assert found == (*INVALID, "chat_template_kwargs.enable_thinking")
    own = PolicyConfig(chat_template_kwargs={"depth": "integer"})
    assert passed(CHAT, {"chat_template_kwargs": {"depth": 3}}, config=own)["chat_template_kwargs"] == {"depth": 3}
    assert refused(CHAT, {"chat_template_kwargs": {"thinking": True}}, config=own)[:2] == UNSUPPORTED


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


COSTLY: dict[str, dict[str, Any]] = {
    "size": {"description": "d" * 16_385},
    "depth": nested(16),
    "properties": {"properties": {str(number): {} for number in range(201)}},
    "values": {"enum": list(range(501))},
    "pattern": {"properties": {"a": {"type": "string", "pattern": "(a+)+"}}},
    "patternProperties": {"patternProperties": {"(a+)+": {}}},
    "outer reference": {"$ref": "https://example.com/schema"},
    "maxItems": {"type": "array", "maxItems": 1001},
    "minLength": {"anyOf": [{"type": "string", "minLength": 1001}]},
    "minItems": {"type": "array", "minItems": -1},
}


@pytest.mark.parametrize("schema", COSTLY.values(), ids=COSTLY)
def test_a_schema_that_is_costly_to_compile(schema: dict[str, Any]) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert refused(CHAT, {"response_format": format_}) == (*SCHEMA, "response_format.json_schema.schema")
    text = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
    assert refused("/v1/responses", {"text": text}) == (*SCHEMA, "text.format.schema")
    output = {"format": {"type": "json_schema", "schema": schema}}
    assert refused("/v1/messages", {"output_config": output}) == (*SCHEMA, "output_config.format.schema")


@pytest.mark.parametrize("schema", COSTLY.values(), ids=COSTLY)
def test_a_costly_schema_of_a_tool_counts_where_the_engine_compiles_it(schema: dict[str, Any]) -> None:
    def tool(**fields: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": "t", "parameters": schema, **fields}}

    param = "tools.0.function.parameters"
    named = {"type": "function", "function": {"name": "t"}}
    other = {"type": "function", "function": {"name": "other"}}
    assert passed(CHAT, {"tools": [tool()]})["tools"] == [tool()]
    assert passed(CHAT, {"tools": [tool()], "tool_choice": other})["tool_choice"] == other
    assert refused(CHAT, {"tools": [tool(strict=True)]}) == (*SCHEMA, param)
    assert refused(CHAT, {"tools": [tool()], "tool_choice": "required"}) == (*SCHEMA, param)
    assert refused(CHAT, {"tools": [tool()], "tool_choice": named}) == (*SCHEMA, param)
    assert refused(CHAT, {"tools": [tool()]}, config=PolicyConfig(bound_all_tools=True)) == (*SCHEMA, param)
    flat = [{"type": "function", "name": "t", "parameters": schema}]
    assert refused("/v1/responses", {"tools": flat, "tool_choice": "required"}) == (*SCHEMA, "tools.0.parameters")
    choice = {"type": "function", "name": "t"}
    assert refused("/v1/responses", {"tools": flat, "tool_choice": choice}) == (*SCHEMA, "tools.0.parameters")
    anthropic = [{"name": "t", "input_schema": schema}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "t"}):
        found = refused("/v1/messages", {"tools": anthropic, "tool_choice": choice})
        assert found == (*SCHEMA, "tools.0.input_schema")
    assert passed("/v1/messages", {"tools": anthropic, "tool_choice": {"type": "auto"}})["tools"] == anthropic


def test_what_looks_like_a_keyword_in_a_schema_may_be_a_name_or_a_value() -> None:
    schema = {
        "properties": {"pattern": {"type": "string"}, "maxItems": {"const": {"pattern": "a"}}},
        "$defs": {"$ref": {"type": "integer"}},
        "required": ["pattern"],
        "items": {"$ref": "#/$defs/$ref"},
    }
    format_ = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert passed(CHAT, {"response_format": format_})["response_format"] == format_


GRAMMAR = {
    "regex": "[a-z]+",
    "grammar": "root ::= 'a'",
    "choice": ["a", "b"],
    "json": {"type": "object"},
}


@pytest.mark.parametrize(("kind", "value"), GRAMMAR.items())
def test_grammars_are_for_keys_with_the_feature(kind: str, value: object) -> None:
    for path in (CHAT, "/v1/completions", "/v1/responses"):
        sent = {"structured_outputs": {kind: value}}
        assert passed(path, sent, caller("grammar"))["structured_outputs"] == {kind: value}
        assert refused(path, sent) == (*UNSUPPORTED, "structured_outputs")


def test_a_grammar_has_bounds_too() -> None:
    long = {"structured_outputs": {"regex": "a" * 16_385}}
    assert refused(CHAT, long, caller("grammar")) == (*INVALID, "structured_outputs.regex")
    text = {"structured_outputs": {"json": '{"pattern": "a*"}'}}
    assert refused(CHAT, text, caller("grammar")) == (*SCHEMA, "structured_outputs.json")
    tag = {"structured_outputs": {"structural_tag": "{}"}}
    assert refused(CHAT, tag, caller("grammar")) == (*UNSUPPORTED, "structured_outputs.structural_tag")


def test_fixed_lengths_and_token_ids_in_answers_are_for_benchmarks() -> None:
    fields = {"ignore_eos": True, "min_tokens": 5, "return_token_ids": True, "return_tokens_as_token_ids": True}
    assert passed(CHAT, fields, caller("benchmark")).items() >= fields.items()
    assert passed("/v1/completions", fields, caller("benchmark")).items() >= fields.items()
    for name, value in fields.items():
        assert refused(CHAT, {name: value}, caller("grammar", "prefill")) == (*UNSUPPORTED, name)
    assert refused("/v1/responses", {"ignore_eos": True}) == (*UNSUPPORTED, "ignore_eos")


def test_prefill_is_a_feature() -> None:
    fields = {"add_generation_prompt": False, "continue_final_message": True}
    assert passed(CHAT, fields, caller("prefill")).items() >= fields.items()


def test_prompts_of_token_ids_may_be_whole_numbers_of_any_spelling() -> None:
    assert passed("/v1/embeddings", {"input": [1.0, 2]})["input"] == [1, 2]
    assert refused("/v1/embeddings", {"input": [1.5, 2]})[:3] == (*INVALID, "input.0")


@pytest.mark.parametrize("prompt", [[1, 2], [[1], [2]]])
def test_prompts_of_token_ids_are_a_feature(prompt: list[Any]) -> None:
    path = "/v1/completions"
    assert passed(path, {"prompt": prompt}, caller("token_ids"))["prompt"] == prompt
    assert refused(path, {"prompt": prompt})[:2] == UNSUPPORTED
    assert passed("/v1/embeddings", {"input": prompt})["input"] == prompt


@pytest.mark.parametrize("path", LEAST)
def test_a_refusal_never_shows_a_value(path: str) -> None:
    secret = "s3cret-words"
    wrong: list[dict[str, Any]] = [{name: {secret: secret}} for name in LEAST[path]]
    wrong += [{"model": [secret]}, {"unknown": secret}, {"cache_salt": secret}, {"tools": secret}]
    wrong += [{"messages": [{"role": secret, "content": secret}]}, {"temperature": secret}]
    for fields in wrong:
        said = message(path, fields).replace(f".{secret}`", "")  # the name of a field may be shown
        assert secret not in said


def test_the_body_is_what_was_sent_and_the_salt() -> None:
    body = json.dumps({**LEAST[CHAT], "model": "é", "temperature": 0.5, "logit_bias": {"7": -1}}).encode()
    checked = check(CHAT, body)
    sent = json.loads(checked.body)
    del sent["cache_salt"]
    assert sent == json.loads(body)
