"""The token channel: authenticated, encrypted ZMQ messages of tokens, from a replica to a gateway.

A gateway binds a PULL socket on its node's address and is the CURVE server. It also makes the one client key
pair that it accepts. Both reach a replica inside the Serve call that carries a request, which Ray's token
protects; nobody else can push tokens. Frames: a header, then vLLM's encoding of `EngineCoreOutputs`, which the
replica's signs of life leave out. The two ends watch each other: a gateway by those signs, a replica by ZMQ's own
heartbeat.
Source: https://rfc.zeromq.org/spec/26/ (CurveZMQ), https://rfc.zeromq.org/spec/27/ (ZAP).
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import zmq
import zmq.asyncio
import zmq.auth.asyncio
from zmq.utils.monitor import recv_monitor_message

from serve_app.vllm_seam import EngineCoreOutputs, MsgpackDecoder, MsgpackEncoder

# Messages that may wait for a gateway that reads slowly before the replica gives it up.
UNREAD_MESSAGES = 4096
# Signs of life: so often a replica beats, and libzmq pings a gateway, whose own thread answers.
BEAT_S = 0.5
PING_MS = 1000
PONG_MS = 2000
# A gateway that lives is back within a moment. The first time its event loop, which may be busy, has to let us in.
BACK_S = 1.0
FIRST_S = 4.0
LET_IN_S = 30.0
# One that was only cut off hears of this replica again.
FORGET_S = 60.0


class Sink(NamedTuple):
    """Where a replica pushes the tokens of one gateway, and the keys that let it."""

    address: str
    server_key: bytes
    client_public: bytes
    client_secret: bytes


class Header(msgspec.Struct, array_like=True, gc=False):
    """Precedes outputs, or stands alone."""

    replica: str
    """The replica's id in Serve."""
    offsets: list[int] = []
    """For each output, how many tokens of its attempt were pushed before it."""
    begun: list[str] = []
    """Request ids, marked with the attempt, that were held back here and are given to the engine core now."""
    taken: list[str] = []
    """Request ids, marked with the attempt, that this replica carries from now on."""
    leaving_s: float | None = None
    """Seconds until this replica is gone, which takes nothing new: what it carries should move. Infinity: not yet.
    None: it stays."""


class SinkGone(Exception):
    """A gateway is dead, or has not read its token channel for `UNREAD_MESSAGES` messages."""


class TokenReceiver:
    """The gateway's end. Needs a running event loop."""

    def __init__(self, host: str) -> None:
        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self._context = zmq.asyncio.Context()
        self._authenticator = zmq.auth.asyncio.AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", _Only(client_public))
        # pyzmq's asyncio socket makes several futures for each message.
        self._socket: zmq.Socket[bytes] = zmq.Socket(self._context, zmq.PULL)
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
        self._loop, self._arrived = asyncio.get_running_loop(), asyncio.Event()
        self._loop.add_reader(self._socket.FD, self._arrived.set)

    async def receive(self) -> tuple[Header, EngineCoreOutputs]:
        """The next message of any replica, in the order in which that replica sent it; without a step it is empty."""
        while True:
            self._arrived.clear()
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
                break
            except zmq.Again:
                await self._arrived.wait()
        step = self._outputs.decode(frames[1:]) if len(frames) > 1 else EngineCoreOutputs()
        return self._header.decode(frames[0]), step

    def close(self) -> None:
        if self._socket.closed:
            return
        self._authenticator.stop()
        self._loop.remove_reader(self._socket.FD)
        self._socket.close(0)
        self._context.destroy(0)


class TokenSender:
    """A replica's end: one line to each gateway that has sent it a request."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._context = zmq.Context()
        self._lines: dict[str, _Line] = {}
        self._header = msgspec.msgpack.Encoder()
        self._outputs = MsgpackEncoder()

    def connect(self, sink: Sink) -> None:
        line = self._lines.get(sink.address)
        if line is not None and line.sink != sink:  # another gateway has got the port of one that died
            self._lines.pop(sink.address).close()
        if sink.address not in self._lines:
            self._lines[sink.address] = _Line(self._context, sink)

    def addresses(self) -> Sequence[str]:
        return tuple(self._lines)

    def push(self, address: str, offsets: list[int], outputs: EngineCoreOutputs) -> None:
        """Queue outputs for a gateway without waiting.

        Raises:
            SinkGone: the gateway does not read. Its line is closed and what waits in it is lost.
        """
        self._send(address, Header(self._replica, offsets), self._outputs.encode(outputs))

    def begin(self, address: str, attempt: str) -> None:
        """Tell a gateway that an attempt is given to the engine core now; raises SinkGone as `push` does."""
        self._send(address, Header(self._replica, begun=[attempt]))

    def take(self, address: str, attempt: str) -> None:
        """Tell a gateway that this replica carries an attempt of a request; raises SinkGone as `push` does."""
        self._send(address, Header(self._replica, taken=[attempt]))

    def beat(self, leaving_s: float | None, elapsed_s: float) -> list[str]:
        """Give every gateway a sign of life.

        Args:
            leaving_s: see `Header`.
            elapsed_s: seconds since the last call in which this process could have noticed anything.

        Returns:
            The addresses of gateways that are gone.
        """
        gone = []
        for address, line in tuple(self._lines.items()):
            try:
                self._send(address, Header(self._replica, leaving_s=leaving_s))
            except SinkGone:
                gone.append(address)
                continue
            line.look(elapsed_s)
            if line.is_broken:
                gone.append(address)
            if line.down_s > FORGET_S:
                self._lines.pop(address).close()
        return gone

    def close(self, flush_s: float = 0) -> None:
        """Close all lines, after giving what waits in them `flush_s` seconds to leave."""
        for line in self._lines.values():
            line.close(flush_s)
        self._lines.clear()
        self._context.destroy(0)

    def _send(self, address: str, header: Header, outputs: Sequence[Any] = ()) -> None:
        if (line := self._lines.get(address)) is None:
            raise SinkGone(address)
        try:
            line.socket.send_multipart([self._header.encode(header), *outputs], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._lines.pop(address).close()
            raise SinkGone(address) from None


class _Line:
    """The connection to one gateway, which libzmq makes again when it breaks."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], sink: Sink) -> None:
        self.sink = sink
        self.socket = socket = context.socket(zmq.PUSH)
        socket.sndhwm = UNREAD_MESSAGES
        socket.ipv6 = "[" in sink.address
        socket.curve_serverkey = sink.server_key
        socket.curve_publickey = sink.client_public
        socket.curve_secretkey = sink.client_secret
        socket.heartbeat_ivl = PING_MS
        socket.heartbeat_timeout = PONG_MS
        self._events = socket.get_monitor_socket(
            zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._patience_s = FIRST_S
        self._up = False
        self.down_s = 0.0
        """For how long the gateway has not been there."""
        socket.connect(sink.address)

    @property
    def is_broken(self) -> bool:
        return self.down_s > self._patience_s

    def look(self, elapsed_s: float) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                event = recv_monitor_message(self._events, zmq.NOBLOCK)["event"]
                self._up = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                if self._up:
                    self._patience_s = BACK_S
                elif event == zmq.EVENT_CONNECTED and self._patience_s == FIRST_S:
                    self._patience_s = LET_IN_S
        self.down_s = 0.0 if self._up else self.down_s + elapsed_s

    def close(self, flush_s: float = 0) -> None:
        # Left to the garbage collector, a socket would wait for ever for a gateway that is gone.
        self.socket.disable_monitor()
        self.socket.close(int(flush_s * 1000))


class _Only:
    """Accepts a single CURVE client key (pyzmq's credentials provider)."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._key
