"""The private names of vLLM that the service stands on; a changed pin must fail here first."""

import inspect

import pytest
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.reasoning import ReasoningParserManager
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.metrics.stats import PrefillStats

from serve_app.fleet.client import FleetClient

USED_BY_ASYNC_LLM = {
    "add_request_async",
    "abort_requests_async",
    "get_output_async",
    "get_supported_tasks_async",
    "shutdown",
}


@pytest.mark.parametrize("name", sorted(USED_BY_ASYNC_LLM))
def test_the_fleet_client_has_the_signatures_of_vllms_own(name: str) -> None:
    ours = inspect.signature(getattr(FleetClient, name))
    theirs = inspect.signature(getattr(AsyncMPClient, name))
    assert list(ours.parameters) == list(theirs.parameters)


def test_async_llm_makes_its_client_where_we_replace_it() -> None:
    source = inspect.getsource(AsyncLLM.__init__)
    assert source.count("EngineCoreClient.make_async_mp_client(") == 1
    assert list(inspect.signature(EngineCoreClient.make_async_mp_client).parameters) == [
        "vllm_config",
        "executor_class",
        "log_stats",
        "client_addresses",
        "client_count",
        "client_index",
        "renderer",
    ]


def test_the_app_state_takes_what_we_give() -> None:
    assert list(inspect.signature(init_app_state).parameters) == ["engine_client", "state", "args", "supported_tasks"]


def test_the_request_path_of_async_llm_asks_no_other_method() -> None:
    path = "".join(
        inspect.getsource(getattr(AsyncLLM, name))
        for name in ("add_request", "_add_request", "generate", "encode", "abort", "_run_output_handler")
    )
    called = {word for word in path.replace("(", " ").split() if word.startswith(("self.engine_core.", "engine_core."))}
    assert {call.rpartition(".")[2] for call in called} <= USED_BY_ASYNC_LLM


def test_what_a_request_comes_to_can_be_read() -> None:
    assert {"external_req_id", "reasoning_parser_kwargs"} <= set(EngineCoreRequest.__struct_fields__)
    assert PrefillStats().num_cached_tokens == 0
    parser = ReasoningParserManager.get_reasoning_parser("qwen3")
    assert list(inspect.signature(parser.count_reasoning_tokens).parameters) == ["self", "token_ids"]
