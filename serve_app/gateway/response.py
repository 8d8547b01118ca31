"""The answer of one request: what vLLM's app sends is looked at before the client gets it.

The 200 is held until the first token is there, so a failure before it is a status. After it a failure is one
error event, with no `[DONE]`, and a connection that closes without the end of the body: an SDK takes a stream
that ends cleanly for a whole answer. vLLM reports a failure in a stream as `data: {"error": ...}` and then
`data: [DONE]` (vllm/entrypoints/openai/chat_completion/serving.py), on the Anthropic route as `event: error`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.gateway.body import receive_until
from serve_app.gateway.deadlines import DeadlinesConfig, Progress, due_times
from serve_app.gateway.errors import DeadlineExceeded, GatewayError, UpstreamFailed
from serve_app.gateway.opening import COMMENT, EVENT_STREAM, FAILURES, Opening
from serve_app.gateway.replies import Style, error_frame, send_error
from serve_app.gateway.translate import internal_error

logger = logging.getLogger("ray.serve")

# The events after which a client counts a stream as complete.
ENDS = (b"data: [DONE]", b"event: message_stop", b"event: response.completed", b"event: response.incomplete")
CLIENT_LEFT = 499
# vLLM's app ends by itself when it is told that the client is gone; a task that does not is cancelled.
GRACE_S = 1.0


class Answer:
    """Runs vLLM's app for one request and answers the client; one object a request.

    Attributes:
        status: what the client got; 499 if it left before the answer began; None until then.
        error: what the request failed of, before or within the stream.
        client_left: whether the client closed the connection before the answer was complete.
    """

    def __init__(
        self,
        send: Send,
        deadlines: DeadlinesConfig,
        progress: Progress,
        refusal: Callable[[], GatewayError | None],
        *,
        request_id: str,
        style: Style = "openai",
        streams: bool = False,
        elsewhere: Callable[[GatewayError], bool] = lambda _: False,
        before_end: Callable[[], Awaitable[None]],
    ) -> None:
        """Args:
        send: the client's, through `with_headers`.
        deadlines: the service's; what the client itself asks for is admission's matter.
        progress: written where the request is dispatched and its tokens are seen.
        refusal: why the gateway refused the request, once it has. It goes before whatever vLLM made of it.
        request_id: for the log, and for the message of a failure inside.
        style: whose error shape the client reads.
        streams: whether the client asks for a stream of events; it gets comments while the model loads.
        elsewhere: whether another model can answer after this error; the client is then not told of it.
        before_end: awaited, perhaps more than once, before the client learns that the answer is over: it may
            send its next request at once, and should find its place free.
        """
        self.status: int | None = None
        self.error: GatewayError | None = None
        self._send = send
        self._deadlines = deadlines
        self._progress = progress
        self._refusal = refusal
        self._request_id, self._style = request_id, style
        self._streams, self._elsewhere = streams, elsewhere
        self._before_end = before_end
        self._loop = asyncio.get_running_loop()
        self._begun = self._wrote = self._chunk = self._write_began = self._loop.time()
        self._over = asyncio.Event()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None
        self._opening = Opening(progress, request_id)
        # What the client has been sent, and whether what the app says is passed on.
        self._started = self._streaming = self._accepted = self._complete = self.client_left = False
        self._whole = True
        self._writing = 0

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        """Have the app answer. Returns once the answer is complete or given up, and the app has ended."""
        task = self._loop.create_task(self._run(app, scope, receive))
        task.add_done_callback(self._app_ended)
        self._watch()
        try:
            await self._over.wait()
            if self.error is not None and not self.is_for_others:
                await self._deliver(self.error)
        except asyncio.CancelledError:
            self._leave()
            raise
        finally:
            self._over.set()
            if self._timer is not None:
                self._timer.cancel()
            if self._comment is not None:
                self._comment.cancel()
            await self._wind_down(task)

    @property
    def is_for_others(self) -> bool:
        """Whether the client has been sent nothing and the request should be answered elsewhere."""
        return self.error is not None and not self._started and not self.client_left and self._elsewhere(self.error)

    async def _run(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        async def receiving() -> Message:
            return await self._receive(receive)

        await app(scope, receiving, self._from_app)

    async def _receive(self, receive: Receive) -> Message:
        """The client's next message, or a disconnect as soon as the answer is over.

        vLLM runs a request that is not streamed in a task that only a disconnect ends: cancelling its app leaves
        that task, and the engine, at work (vllm/entrypoints/serve/utils/api_utils.py, with_cancellation).
        """
        message = await receive_until(self._gone, receive)
        if message["type"] == "http.disconnect" and not self._over.is_set():
            self._leave()
        return message

    async def _from_app(self, message: Message) -> None:
        """The `send` that vLLM's app gets."""
        if self._over.is_set():
            return
        if not self._accepted:
            return await self._before_start(message)
        if self._streaming and message.get("body", b"").startswith(FAILURES):
            return self.fail(self._refusal() or UpstreamFailed())
        await self._write(message)

    async def _before_start(self, message: Message) -> None:
        if message["type"] != "http.response.start" and (refusal := self._refusal()) is not None:
            return self.fail(refusal)
        opened = self._opening.take(message)
        if isinstance(opened, GatewayError):
            return self.fail(opened)
        if opened is None:
            return
        self._accepted, self._streaming = True, self._opening.streaming
        if not self._started:
            await self._begin(self._opening.start)
        await self._write({**message, "body": opened})
        self._watch()

    async def _begin(self, start: Message) -> None:
        self._started, self.status = True, start["status"]
        await self._write(start)

    async def _write(self, message: Message) -> None:
        if message["type"] == "http.response.body" and (
            not message.get("more_body", False) or message["body"].startswith(ENDS)
        ):
            await self._before_end()
        if not self._writing:
            self._write_began = self._loop.time()
        self._writing += 1
        try:
            await self._send(message)
        finally:
            self._writing -= 1
        self._wrote = self._loop.time()
        if message is COMMENT or message["type"] != "http.response.body":
            return
        self._chunk = self._wrote
        self._whole = message.get("body", b"").endswith(b"\n\n")
        if not message.get("more_body", False):
            self._complete = True
            self._over.set()

    async def _send_comment(self) -> None:
        try:
            if not self._started:
                self._streaming = True
                await self._begin(EVENT_STREAM)
            await self._write(COMMENT)
        except (OSError, RuntimeError):  # what Serve and uvicorn raise on a connection that is closed
            self._leave()

    def _watch(self) -> None:
        """Check the deadlines, and come back when the next can be due: one timer a request, none a chunk."""
        if self._over.is_set():
            return
        now, comment_s = self._loop.time(), self._deadlines.keep_alive_s
        chunk = self._chunk if self._streaming and self._accepted else None
        writing = self._write_began if self._writing else None
        try:
            times = due_times(self._deadlines, self._progress, now, begun=self._begun, chunk=chunk, writing=writing)
        except GatewayError as error:
            return self.fail(error)
        if comment_s and (self._streaming or self._streams):
            due = self._wrote + comment_s
            if due <= now:
                if (self._streaming or self._progress.loading) and self._whole and not self._writing:
                    self._comment = self._loop.create_task(self._send_comment())
                due = now + comment_s
            times.append(due)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(times), self._watch) if times else None

    def fail(self, error: GatewayError) -> None:
        """End the request with this error; without effect on an answer that is over."""
        if not self._over.is_set():
            self.error = error
            self._over.set()

    def _leave(self) -> None:
        """The client is gone: nothing is sent any more."""
        self.client_left = not self._complete
        if self.status is None:
            self.status = CLIENT_LEFT
        self._over.set()

    def _app_ended(self, task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        refusal = self._refusal()
        if failure and refusal is None and not self.client_left and not isinstance(self.error, DeadlineExceeded):
            logger.error("request %s failed in the front end", self._request_id, exc_info=failure)
        if not self._complete:
            self.fail(refusal or (UpstreamFailed() if self._started else internal_error(self._request_id)))

    async def _deliver(self, error: GatewayError) -> None:
        """Tell the client, if it can still be told; then the server closes what has no end."""
        try:
            async with asyncio.timeout(self._deadlines.write_stall_s or None):
                await self._before_end()
                if not self._started:
                    self.status = error.status
                    await send_error(error, self._send, [], self._style)
                elif self._streaming and self._whole and not self._writing:
                    frame = error_frame(error, self._style)
                    await self._send({"type": "http.response.body", "body": frame, "more_body": True})
        except TimeoutError:
            logger.warning("request %s: the client reads nothing", self._request_id)

    async def _wind_down(self, task: asyncio.Task[None]) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        try:
            await asyncio.wait((task,), timeout=GRACE_S)
        finally:
            task.cancel()
