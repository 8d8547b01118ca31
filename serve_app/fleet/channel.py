"""The token channel: one authenticated, encrypted ZMQ message per engine step, from a replica to a gateway.

A gateway binds a PULL socket on its node's address and is the CURVE server. It also makes the one client key
pair that it accepts. Both reach a replica inside the Serve call that carries a request, which Ray's token
protects; nobody else can push tokens. Frames: a header, then vLLM's encoding of `EngineCoreOutputs`.
Source: https://rfc.zeromq.org/spec/26/ (CurveZMQ), https://rfc.zeromq.org/spec/27/ (ZAP).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import zmq
import zmq.asyncio
import zmq.auth.asyncio

from serve_app.vllm_seam import EngineCoreOutputs, MsgpackDecoder, MsgpackEncoder

# Steps that may wait for a gateway that reads slowly before the replica gives it up.
UNREAD_STEPS = 4096


class Sink(NamedTuple):
    """Where a replica pushes the tokens of one gateway, and the keys that let it."""

    address: str
    server_key: bytes
    client_public: bytes
    client_secret: bytes


class Header(msgspec.Struct, array_like=True, gc=False):
    """Precedes the outputs of one engine step, or stands alone."""

    replica: str
    """The replica's id in Serve."""
    offsets: list[int] = []
    """For each output, how many tokens of its attempt were pushed before it."""
    begun: list[str] = []
    """Request ids, marked with the attempt, that were held back here and are given to the engine core now."""


class SinkGone(Exception):
    """A gateway has not read its token channel for `UNREAD_STEPS` engine steps."""


class TokenReceiver:
    """The gateway's end. Needs a running event loop."""

    def __init__(self, host: str) -> None:
        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self._context = zmq.asyncio.Context()
        self._authenticator = zmq.auth.asyncio.AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", _Only(client_public))
        self._socket = self._context.socket(zmq.PULL)
        self._socket.curve_server = True
        self._socket.curve_publickey = server_public
        self._socket.curve_secretkey = server_secret
        self._socket.ipv6 = ":" in host
        self._socket.rcvhwm = 0
        bracketed = f"[{host}]" if ":" in host else host
        port = self._socket.bind_to_random_port(f"tcp://{bracketed}")
        self.sink = Sink(f"tcp://{bracketed}:{port}", server_public, client_public, client_secret)
        self._header = msgspec.msgpack.Decoder(Header)
        self._outputs = MsgpackDecoder(EngineCoreOutputs)

    async def receive(self) -> tuple[Header, EngineCoreOutputs]:
        """The next message of any replica, in the order in which that replica sent it; without a step it is empty."""
        frames = await self._socket.recv_multipart(copy=False)
        step = self._outputs.decode(frames[1:]) if len(frames) > 1 else EngineCoreOutputs()
        return self._header.decode(frames[0].buffer), step

    def close(self) -> None:
        self._authenticator.stop()
        self._socket.close(0)
        self._context.destroy(0)


class TokenSender:
    """A replica's end: one socket for each gateway that has sent it a request."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._context = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._header = msgspec.msgpack.Encoder()
        self._outputs = MsgpackEncoder()

    def connect(self, sink: Sink) -> None:
        if sink.address in self._sockets:
            return
        socket = self._context.socket(zmq.PUSH)
        socket.sndhwm = UNREAD_STEPS
        socket.ipv6 = "[" in sink.address
        socket.curve_serverkey = sink.server_key
        socket.curve_publickey = sink.client_public
        socket.curve_secretkey = sink.client_secret
        socket.connect(sink.address)
        self._sockets[sink.address] = socket

    def addresses(self) -> Sequence[str]:
        return tuple(self._sockets)

    def push(self, address: str, offsets: list[int], outputs: EngineCoreOutputs) -> None:
        """Queue one step for a gateway without waiting.

        Raises:
            SinkGone: the gateway does not read. Its socket is closed and what waits in it is lost.
        """
        self._send(address, Header(self._replica, offsets), self._outputs.encode(outputs))

    def begin(self, address: str, attempt: str) -> None:
        """Tell a gateway that an attempt is given to the engine core now; raises SinkGone as `push` does."""
        self._send(address, Header(self._replica, begun=[attempt]))

    def close(self, flush_s: float = 0) -> None:
        """Close all sockets, after giving what waits in them `flush_s` seconds to leave."""
        self._context.destroy(int(flush_s * 1000))

    def _send(self, address: str, header: Header, outputs: Sequence[Any] = ()) -> None:
        try:
            self._sockets[address].send_multipart([self._header.encode(header), *outputs], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._sockets.pop(address).close(0)
            raise SinkGone(address) from None


class _Only:
    """Accepts a single CURVE client key (pyzmq's credentials provider)."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._key
