"""The token channel over real sockets: what arrives, and who is kept out."""

import asyncio
from collections.abc import Iterator

import pytest
import zmq
import zmq.utils.monitor
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from serve_app.fleet.channel import Sink, SinkGone, TokenReceiver, TokenSender


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
    monkeypatch.setattr("serve_app.fleet.channel.UNREAD_STEPS", 4)
    public, secret = zmq.curve_keypair()
    nowhere = Sink("tcp://127.0.0.1:1", public, public, secret)
    sender.connect(nowhere)
    for number in range(4):
        sender.push(nowhere.address, [0], step(number))
    with pytest.raises(SinkGone):
        sender.push(nowhere.address, [0], step(4))
    assert sender.addresses() == ()
