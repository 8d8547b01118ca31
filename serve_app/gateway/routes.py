"""Every route that the service answers. What is not listed here is 404, whatever vLLM's own app has."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelRoute:
    """A route that the front end of the request's model answers."""

    path: str
    """The path in vLLM's app."""
    multipart: bool = False
    """The body is a form with a file, not JSON."""
    stream_by_default: bool = False
    """A body without `stream` asks for a stream."""
    model_required: bool = False
    """A body without `model` is refused instead of going to the first model."""


MODEL_ROUTES = {
    route: ModelRoute(route)
    for route in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/score",
        "/tokenize",
        "/detokenize",
    )
} | {
    "/v1/audio/transcriptions": ModelRoute("/v1/audio/transcriptions", multipart=True),
    "/v1/audio/translations": ModelRoute("/v1/audio/translations", multipart=True),
    "/api/chat": ModelRoute("/v1/chat/completions", stream_by_default=True, model_required=True),
}

HEALTH = "/api/healthz"
METRICS = "/metrics"
USAGE = "/api/usage"
MODEL_LISTS = frozenset({"/v1/models", "/api/models"})
MODEL_PREFIX = "/v1/models/"
