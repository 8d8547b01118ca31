"""The request policy: what the body of each route may hold, field by field.

Each route has a table of its own, which names every field that vLLM's model of the route has, and those that
clients of OpenAI and Anthropic send besides. A field that is not in the table is unknown, and refused. The rules
that an entry can have are in rules.py, fields.py, verdicts.py and tools.py; the bounds are settings (settings.py).
`python -m serve_app.gateway.policy` prints it all.

    /v1/chat/completions  /v1/completions  /v1/responses     generate.py   (their nested shapes: chat.py, responses.py)
    /v1/messages  /v1/messages/count_tokens                  messages.py   (anthropic.py)
    /v1/embeddings  /v1/rerank  /v1/score                    pooling.py
    /tokenize  /detokenize                                   pooling.py
    /v1/audio/transcriptions  /v1/audio/translations         forms.py
"""

from serve_app.gateway.policy import forms, generate, messages, pooling
from serve_app.gateway.policy.entries import RoutePolicy
from serve_app.gateway.policy.settings import PolicyConfig


def table(c: PolicyConfig) -> dict[str, RoutePolicy]:
    """The policy of each path of vLLM's app that the service serves."""
    return {
        "/v1/chat/completions": generate.chat_completions(c),
        "/v1/completions": generate.completions(c),
        "/v1/responses": generate.responses_api(c),
        "/v1/messages": messages.messages_api(c),
        "/v1/messages/count_tokens": messages.count_tokens(c),
        "/v1/embeddings": pooling.embeddings(c),
        "/v1/rerank": pooling.rerank(c),
        "/v1/score": pooling.score(c),
        "/tokenize": pooling.tokenize(c),
        "/detokenize": pooling.detokenize(c),
        "/v1/audio/transcriptions": forms.transcriptions(c),
        "/v1/audio/translations": forms.translations(c),
    }
