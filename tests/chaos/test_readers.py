"""A reader that stalls and one that vanishes cost the others nothing."""

import json
import re
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from tests.service import Service, wait_for

CHAT = "/v1/chat/completions"
WORDS = "one two three four five six seven eight nine ten"
LONG = " ".join(f"{WORDS} {number}" for number in range(40))
"""Less than half of what the model can read, as the prompt holds it too."""
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset at once


class Reader:
    """A client on a bare socket, which reads when it is told to, and whose kernel holds next to nothing for it."""

    def __init__(self, service: Service, model: str, content: str, **settings: Any) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": True, **settings}
        payload = json.dumps(body).encode()
        self._address = urlsplit(service.gateways()[0].url)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self._socket.settimeout(60)
        self._socket.connect((self._address.hostname, self._address.port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {self._address.netloc}\r\nAuthorization: Bearer {service.key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        self._socket.sendall(head.encode() + payload)

    def begin(self) -> "Reader":
        """Read as far as the first of the answer."""
        self._head = self._socket.recv(256)
        assert b" 200 OK" in self._head
        return self

    def unsent(self) -> int:
        """Bytes that the gateway's kernel holds back because this client takes no more."""
        ours, theirs = f":{self._socket.getsockname()[1]:04X}", f":{self._address.port:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, _, queues, *_ = line.split()
            if local.endswith(theirs) and remote.endswith(ours):
                return int(queues.partition(":")[0], 16)
        return 0

    def read_on(self) -> str:
        """The text of the answer, from its beginning to its end."""
        received = self._head + b"".join(iter(lambda: self._socket.recv(65536), b""))
        return "".join(map(content_of, re.findall(r"^data: ({.*})\r?$", received.decode(), re.MULTILINE)))

    def vanish(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._socket.close()


def metric(service: Service, name: str, model: str) -> float:
    found = re.search(rf'vllm:{name}{{[^}}]*model_name="{model}"}} (\S+)', service.http.get("/metrics").text)
    assert found is not None
    return float(found[1])


def read(service: Service, model: str, content: str) -> str:
    """The text of a stream that is read as it comes."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": True}
    text = ""
    with service.http as http, http.stream("POST", CHAT, json=body) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += content_of(line.removeprefix("data: "))
    return text


def content_of(data: str) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in msgspec.json.decode(data)["choices"])


def read_all(service: Service, model: str, streams: int) -> None:
    """So many streams at a time, each of which must get all of its own answer."""
    expected = [f"{number} {WORDS}" for number in range(streams)]
    with ThreadPoolExecutor(streams) as threads:
        contents = [f"[[answer: {text}]] [[pace: 10ms]]" for text in expected]
        assert list(threads.map(lambda content: read(service, model, content), contents)) == expected


@contextmanager
def a_stalled_reader(service: Service, model: str) -> Iterator[Reader]:
    """One that has stopped reading in the middle of an answer, until the gateway can send it no more."""
    reader = Reader(service, model, f"[[answer: {LONG}]]", logprobs=True, top_logprobs=20).begin()
    wait_for(lambda: reader.unsent() > 0, "the end of what the gateway can send")
    yield reader
    reader.vanish()


def test_a_stalled_reader_holds_nobody_up_and_loses_nothing(service: Service) -> None:
    with a_stalled_reader(service, "scripted") as reader:
        read_all(service, "scripted", streams=8)
        wait_for(lambda: metric(service, "num_requests_running", "scripted") == 0, "the end of its generation")
        assert reader.unsent() > 0
        assert reader.read_on() == LONG


def test_a_stalled_reader_does_not_keep_the_only_seat(service: Service) -> None:
    with a_stalled_reader(service, "narrow") as reader:
        read_all(service, "narrow", streams=2)
        assert reader.unsent() > 0


@pytest.mark.parametrize("model", ["scripted", "narrow"])
def test_vanished_readers_give_their_seats_back(service: Service, model: str) -> None:
    before = metric(service, "generation_tokens_total", model)
    readers = [Reader(service, model, f"[[answer: {LONG}]] [[pace: 50ms]]") for _ in range(3)]
    readers[0].begin()
    wait_for(lambda: metric(service, "num_requests_running", model) >= 1, "their start")
    for reader in readers:
        reader.vanish()
    read_all(service, model, streams=4)
    wait_for(lambda: metric(service, "num_requests_running", model) == 0, "the abort of their requests")
    assert metric(service, "generation_tokens_total", model) - before < 2 * len(LONG.split())
