"""Requests as bytes, for what a client library would not send."""

import socket
from http.client import HTTPResponse
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

TIMEOUT_S = 60


class Raw(NamedTuple):
    response: httpx.Response
    closed: bool
    """Whether the server has closed the connection after the answer, or says that it will."""


def exchange(url: str, request: bytes) -> Raw:
    """Send bytes on a connection of their own, and read one answer.

    Raises:
        ConnectionError: the server closed the connection without an answer.
    """
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), TIMEOUT_S) as connection:
        connection.sendall(request)
        reader = HTTPResponse(connection)
        reader.begin()
        body = reader.read()
        response = httpx.Response(reader.status, headers=reader.getheaders(), content=body)
        return Raw(response, reader.will_close)


def head(method: str, target: str, *lines: str, host: str = "service") -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"host: {host}", *lines, "", ""]).encode("latin-1")
