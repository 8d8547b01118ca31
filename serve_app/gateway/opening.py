"""How vLLM's app begins its answer, held back until it is clear whether it is one."""

from starlette.types import Message

from serve_app.gateway.deadlines import Progress
from serve_app.gateway.errors import GatewayError
from serve_app.gateway.headers import is_event_stream
from serve_app.gateway.translate import from_answer, from_frame

# How a stream begins before the app has begun it.
EVENT_STREAM: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
COMMENT: Message = {"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True}
FAILURES = (b'data: {"error"', b"event: error")
MAX_ERROR_BYTES = 1024 * 1024


class Opening:
    """What the app has sent so far."""

    def __init__(self, progress: Progress, request_id: str) -> None:
        self.start: Message = {}
        """Status and headers."""
        self.streaming = False
        """Whether the answer is a stream of events."""
        self._progress = progress
        self._request_id = request_id
        self._held = b""

    def take(self, message: Message) -> bytes | GatewayError | None:
        """The body as far as it may be sent, why there will be no answer, or None while that is not clear."""
        if message["type"] == "http.response.start":
            self.start = message
            self.streaming = is_event_stream(message["headers"])
            return None
        body, more = message.get("body", b""), message.get("more_body", False)
        status = self.start["status"]
        if status >= 300:
            self._held += body
            return None if more and len(self._held) <= MAX_ERROR_BYTES else self._failure(status)
        if self.streaming and body.startswith(FAILURES):
            return from_frame(body, self._request_id)
        self._held += body
        # /v1/responses opens before it has asked the engine for anything, chat with the role before an error.
        if more and (not body or (self.streaming and not self._progress.begun)):
            return None
        return self._held

    def _failure(self, status: int) -> GatewayError:
        return from_answer(status, self._held, self._request_id)
