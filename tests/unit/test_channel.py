"""The token channel over real sockets: what arrives, and who is kept out."""

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest
import zmq
import zmq.utils.monitor
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from serve_app.fleet import channel
from serve_app.fleet.channel import BEAT_S, Sink, SinkGone, TokenReceiver, TokenSender
from tests.service import wait_for


@pytest.fixture
async def receiver() -> Iterator[TokenReceiver]:  # type: ignore[misc]
    receiver = TokenReceiver("127.0.0.1")
    yield receiver
    receiver.close()


@pytest.fixture
def sender() -> Iterator[TokenSender]:
    sender = TokenSender("replica-1")
    yield sender
    sender.close()


def step(number: int) -> EngineCoreOutputs:
    return EngineCoreOutputs(outputs=[EngineCoreOutput(f"r{number}~0", [number, number + 1])], timestamp=1.0)


async def test_steps_arrive_in_order(receiver: TokenReceiver, sender: TokenSender) -> None:
    sender.connect(receiver.sink)
    sender.connect(receiver.sink)
    for number in range(100):
        sender.push(receiver.sink.address, [number], step(number))
    for number in range(100):
        header, outputs = await asyncio.wait_for(receiver.receive(), 10)
        assert (header.replica, header.offsets) == ("replica-1", [number])
        assert outputs.outputs[0].new_token_ids == [number, number + 1]


def intruders(sink: Sink) -> dict[str, dict[str, bytes]]:
    public, secret = zmq.curve_keypair()
    other_server, _ = zmq.curve_keypair()
    return {
        "no keys": {},
        "client key of its own": {
            "curve_serverkey": sink.server_key,
            "curve_publickey": public,
            "curve_secretkey": secret,
        },
        "another server's key": {
            "curve_serverkey": other_server,
            "curve_publickey": sink.client_public,
            "curve_secretkey": sink.client_secret,
        },
    }


@pytest.mark.parametrize("kind", ["no keys", "client key of its own", "another server's key"])
async def test_nobody_else_can_push(receiver: TokenReceiver, sender: TokenSender, kind: str) -> None:
    context = zmq.Context()
    intruder = context.socket(zmq.PUSH)
    intruder.linger = 0
    for option, value in intruders(receiver.sink)[kind].items():
        setattr(intruder, option, value)
    monitor = intruder.get_monitor_socket()
    intruder.connect(receiver.sink.address)
    intruder.send_multipart([b"forged", b"tokens"])
    refused = {
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
        zmq.EVENT_HANDSHAKE_FAILED_AUTH,
        zmq.EVENT_DISCONNECTED,
    }
    while (await asyncio.to_thread(zmq.utils.monitor.recv_monitor_message, monitor))["event"] not in refused:
        pass
    sender.connect(receiver.sink)
    sender.push(receiver.sink.address, [0], step(0))
    header, _ = await asyncio.wait_for(receiver.receive(), 10)
    assert header.replica == "replica-1"
    intruder.disable_monitor()
    context.destroy(0)


def test_a_gateway_that_never_reads_is_given_up(sender: TokenSender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.fleet.channel.UNREAD_MESSAGES", 4)
    public, secret = zmq.curve_keypair()
    nowhere = Sink("tcp://127.0.0.1:1", public, public, secret)
    sender.connect(nowhere)
    for number in range(4):
        sender.push(nowhere.address, [0], step(number))
    with pytest.raises(SinkGone):
        sender.push(nowhere.address, [0], step(4))
    assert sender.addresses() == ()


async def test_a_sign_of_life_says_who_lives_and_for_how_long(receiver: TokenReceiver, sender: TokenSender) -> None:
    sender.connect(receiver.sink)
    sender.take(receiver.sink.address, "r~0")
    assert sender.beat(leaving_s=7.5, elapsed_s=0) == []
    taken, step_ = await asyncio.wait_for(receiver.receive(), 10)
    assert (taken.replica, taken.taken, taken.leaving_s, step_.outputs) == ("replica-1", ["r~0"], None, [])
    beat, step_ = await asyncio.wait_for(receiver.receive(), 10)
    assert (beat.replica, beat.taken, beat.leaving_s, step_.outputs) == ("replica-1", [], 7.5, [])


def _be_a_gateway(sinks: Connection) -> None:
    async def listen() -> None:
        receiver = TokenReceiver("127.0.0.1")
        sinks.send(receiver.sink)
        while True:
            await receiver.receive()
            sinks.send("heard")

    asyncio.run(listen())


class Gateway:
    """A gateway in a process of its own, which has heard of the replica."""

    def __init__(self, sender: TokenSender) -> None:
        context = multiprocessing.get_context("fork")
        self.sinks, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_be_a_gateway, args=(theirs,), daemon=True)
        self.process.start()
        self.sink: Sink = self.sinks.recv()
        sender.connect(self.sink)
        sender.push(self.sink.address, [0], step(0))
        assert self.sinks.recv() == "heard"

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@pytest.fixture
def gateway(sender: TokenSender) -> Iterator[Gateway]:
    started = Gateway(sender)
    yield started
    started.process.kill()
    started.process.join()


def beat(sender: TokenSender) -> list[str]:
    """As a replica does, in real time."""
    time.sleep(BEAT_S / 5)
    return sender.beat(None, BEAT_S / 5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_gateway_that_is_dead_or_stopped_is_gone(
    sender: TokenSender, gateway: Gateway, number: signal.Signals
) -> None:
    assert beat(sender) == []
    gateway.signal(number)
    wait_for(lambda: beat(sender) == [gateway.sink.address], "the end of the gateway", 20)


def test_that_takes_less_than_five_seconds() -> None:
    unanswered_s = (channel.PING_MS + channel.PONG_MS) / 1000
    assert unanswered_s + channel.BACK_S + channel.BEAT_S < 5


def test_a_gateway_that_goes_on_hears_the_replica_again(sender: TokenSender, gateway: Gateway) -> None:
    gateway.signal(signal.SIGSTOP)
    wait_for(lambda: beat(sender) == [gateway.sink.address], "the end of the gateway", 20)
    while gateway.sinks.poll():
        gateway.sinks.recv()
    gateway.signal(signal.SIGCONT)
    wait_for(lambda: beat(sender) == [], "the return of the gateway", 20)
    assert gateway.sinks.poll(20)


def test_a_gateway_is_forgotten_for_good(sender: TokenSender, gateway: Gateway) -> None:
    gateway.signal(signal.SIGKILL)
    wait_for(lambda: beat(sender) == [gateway.sink.address], "the end of the gateway", 20)
    assert sender.beat(None, 60) == [gateway.sink.address]
    assert (sender.addresses(), sender.beat(None, 60)) == ((), [])


async def test_a_gateway_may_get_the_port_of_a_dead_one(receiver: TokenReceiver, sender: TokenSender) -> None:
    public, secret = zmq.curve_keypair()
    sender.connect(Sink(receiver.sink.address, public, public, secret))
    sender.connect(receiver.sink)
    sender.push(receiver.sink.address, [3], step(3))
    header, _ = await asyncio.wait_for(receiver.receive(), 10)
    assert header.offsets == [3]


def test_steps_for_a_gateway_that_was_given_up_are_refused(sender: TokenSender) -> None:
    with pytest.raises(SinkGone):
        sender.push("tcp://127.0.0.1:1", [0], step(0))
