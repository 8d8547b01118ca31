"""The table names every field of vLLM's request models: a new one fails here until somebody decides on it."""

from typing import Any

import pytest
from pydantic import BaseModel
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingChatRequest, EmbeddingCompletionRequest
from vllm.entrypoints.pooling.scoring.protocol import (
    RerankRequest,
    ScoreDataRequest,
    ScoreQueriesDocumentsRequest,
    ScoreQueriesItemsRequest,
    ScoreTextRequest,
)
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)
from vllm.entrypoints.speech_to_text.transcription.protocol import TranscriptionRequest
from vllm.entrypoints.speech_to_text.translation.protocol import TranslationRequest

from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.table import table
from serve_app.gateway.routes import MODEL_ROUTES

MODELS: dict[str, list[type[BaseModel]]] = {
    "/v1/chat/completions": [ChatCompletionRequest],
    "/v1/completions": [CompletionRequest],
    "/v1/responses": [ResponsesRequest],
    "/v1/messages": [AnthropicMessagesRequest],
    "/v1/messages/count_tokens": [AnthropicCountTokensRequest],
    "/v1/embeddings": [EmbeddingChatRequest, EmbeddingCompletionRequest],
    "/v1/rerank": [RerankRequest],
    "/v1/score": [
        ScoreDataRequest,
        ScoreQueriesDocumentsRequest,
        ScoreQueriesItemsRequest,
        ScoreTextRequest,
    ],
    "/tokenize": [TokenizeChatRequest, TokenizeCompletionRequest],
    "/detokenize": [DetokenizeRequest],
    "/v1/audio/transcriptions": [TranscriptionRequest],
    "/v1/audio/translations": [TranslationRequest],
}
# A form's file is no field of text, and its lists have names of their own.
OF_FORMS = {"file", "timestamp_granularities"}


def names(model: type[BaseModel]) -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        alias: Any = field.validation_alias or field.alias
        found.add(alias if isinstance(alias, str) else name)
    return found


def test_every_route_has_a_table() -> None:
    assert set(table(PolicyConfig())) == {route.path for route in MODEL_ROUTES.values()} == set(MODELS)


@pytest.mark.parametrize("path", MODELS)
def test_the_table_names_every_field_of_vllm(path: str) -> None:
    of_vllm = set().union(*map(names, MODELS[path])) - OF_FORMS
    assert of_vllm - set(table(PolicyConfig())[path].fields) == set()
