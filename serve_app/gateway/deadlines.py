"""How long each part of an answer may take, by the service's settings and by the client's own headers."""

import math
from collections.abc import Iterator
from typing import Protocol

from pydantic import Field

from serve_app.gateway.errors import BadRequest, DeadlineExceeded, Headers, ModelLoading
from serve_app.settings import Closed

OWN_HEADER = b"x-request-deadline-ms"
SDK_HEADER = b"x-stainless-read-timeout"
LONGEST_MS = 24 * 60 * 60 * 1000


class DeadlinesConfig(Closed):
    """Deadlines of one request, in seconds; 0 switches one off."""

    body_s: float = Field(default=30, ge=0)
    """From the head of a request to the end of its body."""
    first_token_s: float = Field(default=60, ge=0)
    """From the dispatch to a replica to the first token."""
    between_tokens_s: float = Field(default=60, ge=0)
    """Between two tokens."""
    total_s: float = Field(default=600, ge=0)
    """The whole request, its time in the queue included."""
    write_stall_s: float = Field(default=30, ge=0)
    """How long a client that reads nothing may hold a write up."""
    keep_alive_s: float = Field(default=10, ge=0)
    """Silence in a stream after which a comment is sent."""


class Progress(Protocol):
    """What the engine has done for one request, in the event loop's time.

    A stream can be silent while tokens come (a tool call is being collected), and an answer without a stream
    always is, so the deadlines go by this.
    """

    @property
    def begun(self) -> bool:
        """Whether any token of the answer has come."""

    @property
    def model(self) -> str:
        """The model's id."""

    @property
    def loading(self) -> bool:
        """Whether the request waits for a model that has no replica."""

    @property
    def deadline(self) -> float | None:
        """When the client must have its first token; None: it does not say."""

    @property
    def dispatched(self) -> float | None:
        """When the request went to a replica; None: it has not, or its deadlines do not run now."""

    @property
    def token(self) -> float | None:
        """When its last token came, or the request moved to another replica."""


def due_times(
    deadlines: DeadlinesConfig,
    progress: Progress,
    now: float,
    *,
    begun: float,
    chunk: float | None,
    writing: float | None,
) -> list[float]:
    """When each deadline of a request can be due next. All times are the event loop's.

    Args:
        deadlines: the service's.
        progress: of the request.
        now: the time.
        begun: when the request came.
        chunk: when a chunk of its stream was last sent.
        writing: since when the client has not taken what is being sent.

    Raises:
        DeadlineExceeded: one is over.
        ModelLoading: the client's own is, and no replica was there to meet it.
    """
    times = []
    if progress.deadline is not None and chunk is None:
        if progress.deadline > now:
            times.append(progress.deadline)
        elif progress.loading:
            raise ModelLoading(progress.model)
    for since, limit, what in _running(deadlines, progress, begun, chunk, writing):
        if not limit:
            continue
        if since is not None and since + limit <= now:
            raise DeadlineExceeded(what, limit)
        times.append((now if since is None else since) + limit)
    return times


def _running(
    deadlines: DeadlinesConfig, progress: Progress, begun: float, chunk: float | None, writing: float | None
) -> Iterator[tuple[float | None, float, str]]:
    """Each deadline of a request: since when it runs (None: not now), its seconds, and what it bounds."""
    token = progress.token if chunk is None else max(progress.token or 0.0, chunk)
    yield begun, deadlines.total_s, "The request"
    yield progress.dispatched if token is None else None, deadlines.first_token_s, "The first token"
    yield token, deadlines.between_tokens_s, "The next token"
    yield writing, deadlines.write_stall_s, "Sending to the client"


def client_deadline(headers: Headers, arrived: float, read: float) -> float | None:
    """When the client stops waiting for the first token; None: it does not say.

    `x-request-deadline-ms` gives the milliseconds left when the request was sent and goes before
    `x-stainless-read-timeout`, which the OpenAI and Anthropic SDKs send in seconds and count from the end of the
    body. Theirs is ignored where it makes no sense: users do not write it.

    Args:
        headers: of the request.
        arrived: when the request came, in the event loop's time, which is also the monotonic clock's.
        read: when its body was whole.

    Raises:
        BadRequest: `x-request-deadline-ms` is not a whole number of milliseconds from 1 to a day.
    """
    given = dict(headers)
    if (own := given.get(OWN_HEADER)) is not None:
        if not own.isdigit() or len(own) > len(str(LONGEST_MS)) or not 1 <= int(own) <= LONGEST_MS:
            name = OWN_HEADER.decode()
            raise BadRequest(f"`{name}` must be a whole number from 1 to {LONGEST_MS}.", param=name)
        return arrived + int(own) / 1000
    try:
        seconds = float(given.get(SDK_HEADER, b"nan"))
    except ValueError:
        return None
    return read + seconds if 0 < seconds < math.inf else None
