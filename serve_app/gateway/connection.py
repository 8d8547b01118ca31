"""A client's connection to one of Serve's HTTP servers: what is not HTTP as it should be ends here, in bounded time.

uvicorn gives a client all the time it likes to send a request, takes a head of any size, hands on whatever Host it is
given, and answers what it cannot parse with plain text. Serve has no switch for any of it.
The head that a gateway takes (`policy.header_bytes`) and the time for a body (`deadlines.body_s`) are settings of the
service; the bounds here hold before a gateway sees the request.
"""

import asyncio
import re
import socket
import uuid
from typing import Any, cast

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serve_app.gateway.errors import BadRequest, GatewayError, HeadersTooLarge, RequestTooSlow
from serve_app.gateway.headers import COMMON
from serve_app.gateway.replies import JSON, error_body

HEAD_BYTES = 64 * 1024
READ_S = 10.0
"""For a head, and for the rest of a body that is answered already."""
STALL_S = 60
"""For a client to take what it is sent; whole seconds."""
GATHERED_BYTES = 16 * 1024

_HOST = re.compile(rb"([\w.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def install() -> None:
    """Have the uvicorn servers that this process starts from now on use `Connection`."""
    auto.AutoHTTPProtocol = Connection


class Gathering:
    """A transport that sends what is written to it in one turn of the event loop as one piece.

    An answer begins and ends with several short writes, and each costs as much as the tokens of a chunk.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)
        self._size += len(data)
        if self._size > GATHERED_BYTES:
            self._flush()  # lest a writer that never waits be told too late that the client does not read

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with bounds and with refusals in the shape of all errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # a request to upgrade is answered like any other
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_bytes = 0
        self._whole = True
        self._refusal: GatewayError | None = None
        self._deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", Gathering(transport, self.loop)))
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # closing alone would wait for a client that reads nothing
            stalled_ms = STALL_S * 1000
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stalled_ms)
        self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self._refuse(HeadersTooLarge(f"The head of the request is over {HEAD_BYTES} bytes."))
        elif not self._answering:
            self._expect_more()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._whole = True, 0, False
        self._expect_more()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._expect_nothing()
        self._check_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._whole = True
        self._expect_nothing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._whole and not self._answering:
            self._expect_more()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for whatever its parser, or a method called by it, has raised."""
        self._refuse(self._refusal or BadRequest("The request is not HTTP as it should be."))

    def _unsupported_upgrade_warning(self) -> None:
        self.cycle.keep_alive, self._deaf = False, True  # the parser takes what follows for another protocol

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _check_head(self) -> None:
        hosts = [value for name, value in self.headers if name == b"host"]
        optional = self.parser.get_http_version() == "1.0"
        if len(hosts) > 1 or not (hosts or optional) or not all(map(_HOST.fullmatch, hosts)):
            self._refusal = BadRequest("The request needs one valid Host header.")
        elif not self.url.startswith(b"/") or self.parser.get_method() == b"CONNECT":
            self._refusal = BadRequest("This is no proxy: the target of the request must be a path.")
        if self._refusal is not None:
            raise self._refusal

    def _expect_more(self) -> None:
        """The client has to send what no app waits for; time that runs already goes on."""
        if self._timer is None:
            self._timer = self.loop.call_later(READ_S, self._give_up)

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._answering and not self._deaf:
            self._expect_more()  # the head is of the next request
        elif self._in_head:
            self._refuse(RequestTooSlow("The head of the request", READ_S))
        else:
            self.transport.close()

    def _refuse(self, error: GatewayError) -> None:
        """Answer and close. What the client still sends is read for a while, or it might not get the answer."""
        self._deaf, self._in_head = True, False
        if self._answering:
            if self.pipeline or self.cycle.response_started:  # this would be taken for a part of another answer
                self.transport.close()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = error_body(error, "openai")
        headers = [
            JSON,
            *COMMON,
            *error.headers,
            (b"x-request-id", uuid.uuid4().hex.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._expect_more()
        else:
            self.transport.close()
