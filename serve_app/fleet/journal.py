"""The journal: for each request its tokens delivered so far, so that another replica can go on with it."""

import asyncio
import copy
import time
from collections.abc import Callable, Iterator

from serve_app.fleet.suspicion import Suspicion
from serve_app.vllm_seam import EngineCoreOutput, EngineCoreRequest, FinishReason


class TokensLost(Exception):
    """An output does not continue where the journal stands: a step before it never arrived."""


class Entry:
    """One request: the tokens delivered, the attempt that is delivering them, and what it came to."""

    __slots__ = (
        "attempt",
        "base",
        "begun",
        "cached_tokens",
        "carrier",
        "died_at",
        "dispatched_at",
        "finish_reason",
        "finished",
        "first_token_at",
        "held",
        "last_token_at",
        "moves",
        "on_close",
        "on_error",
        "on_first_token",
        "on_refused",
        "read",
        "refused",
        "replicas",
        "request",
        "sent",
        "suspicion",
        "task",
        "tokens",
    )

    def __init__(self, request: EngineCoreRequest) -> None:
        self.request = request
        self.tokens: list[int] = []
        self.read = 0
        """Tokens that the front end has taken; those that come after it has given the request up are not."""
        self.sent = 0
        """Of those, the tokens that the front end has made an answer of and passed on."""
        self.cached_tokens = 0
        """Prompt tokens that the attempt which began the answer found in the KV cache."""
        self.dispatched_at: float | None = None
        """When a replica got it to begin; this and the next two in seconds of the monotonic clock."""
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        """When a token came, or a replica got the request to go on with."""
        self.replicas = 0
        """Those that have worked on it, one after another."""
        self.moves = 0
        """How often it has moved because a replica was lost."""
        self.begun = False
        """Whether the engine core of its present replica may have it."""
        self.held = False
        """Whether it waits for its turn to go on, which its deadlines do not count."""
        self.died_at: int | None = None
        """How many tokens it had when a replica died over it, the last time."""
        self.suspicion = Suspicion.NONE
        self.refused = False
        """Whether it is known to kill replicas."""
        self.finish_reason: FinishReason | None = None
        """As the front end has read it; None while it runs, and when the request was given up."""
        self.on_first_token: Callable[[], None] | None = None
        """Called with the first token, if that came without a move: otherwise its time is not a usual one."""
        self.on_error: Callable[[], None] | None = None
        """Called if it is given up: vLLM does not tell that from its own failures, or not at all."""
        self.on_close: Callable[[], None] | None = None
        """Called once, when the request needs no replica any more."""
        self.on_refused: Callable[[], None] | None = None
        """Called if it is given up because it kills replicas."""
        self.attempt = 0
        self.carrier: str | None = None
        """The replica that has said it carries the present attempt."""
        self.base = 0
        self.finished = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, without those delivered."""
        request = self.request
        if request.prompt_token_ids is not None:
            return len(request.prompt_token_ids)
        return 0 if request.prompt_embeds is None else len(request.prompt_embeds)

    @property
    def most_tokens(self) -> int:
        """Tokens that the answer may have; 0 where the model pools instead of generating."""
        params = self.request.sampling_params
        return 0 if params is None else params.max_tokens or 0

    def begin(self) -> None:
        """A replica is given the present attempt to work on: from now on its deadlines count."""
        self.replicas += not self.begun
        self.begun, self.held = True, False
        if self.tokens:
            self.last_token_at = time.monotonic()
        else:
            self.dispatched_at = time.monotonic()

    def take(self, replica: str) -> None:
        """A replica has got the present attempt, which may have waited long for one to start."""
        self.carrier = replica
        if self.begun:
            self.begin()

    def next_attempt(self) -> None:
        """Give up the present attempt: what it still sends is dropped."""
        self.attempt += 1
        self.base = len(self.tokens)
        self.carrier = None
        self.begun, self.held = False, True
        self.on_first_token = None

    def forget(self) -> None:
        """Forget the answer so far, of which nobody has been told."""
        self.tokens.clear()
        self.read = self.cached_tokens = 0
        self.first_token_at = self.last_token_at = None

    def attempt_request(self) -> EngineCoreRequest:
        """The request as this attempt sends it: delivered tokens are prompt, and count against the limits.

        Not against a thinking budget: vLLM counts that from the start of the reasoning, in the prompt as well.
        """
        request = copy.copy(self.request)
        request.request_id = f"{self.request.request_id}~{self.attempt}"
        params = request.sampling_params
        if params is None or not self.tokens:
            return request
        params = params.clone()
        if params.max_tokens is not None:
            params.max_tokens -= len(self.tokens)
        params.min_tokens = max(0, params.min_tokens - len(self.tokens))
        # They came with the first token.
        params.prompt_logprobs = params.prompt_logprob_token_ids = params.prompt_logprob_start = None
        request.sampling_params = params
        request.prompt_token_ids = [*(request.prompt_token_ids or ()), *self.tokens]
        return request


class Journal:
    """The open requests of one fleet client, by request id."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def open(self, request: EngineCoreRequest) -> Entry:
        entry = self._entries[request.request_id] = Entry(request)
        return entry

    def close(self, request_id: str) -> Entry | None:
        """Forget a request: it has ended, or its client has left."""
        entry = self._entries.pop(request_id, None)
        if entry is not None:
            entry.finished.set()
            if entry.on_close is not None:
                entry.on_close()
        return entry

    def holds(self, entry: Entry) -> bool:
        """Whether this request is still open."""
        return self._entries.get(entry.request.request_id) is entry

    def entry_of(self, output: EngineCoreOutput) -> Entry | None:
        """The open request that this output of a replica belongs to, if its attempt is the present one."""
        return self.entry_at(output.request_id)

    def entry_at(self, attempt_id: str) -> Entry | None:
        """The open request whose present attempt has this id."""
        request_id, _, attempt = attempt_id.rpartition("~")
        entry = self._entries.get(request_id)
        return entry if entry is not None and str(entry.attempt) == attempt else None

    def waiting(self) -> int:
        """Requests that have no token yet."""
        return sum(1 for entry in self._entries.values() if not entry.tokens)

    def record(self, entry: Entry, output: EngineCoreOutput, offset: int) -> None:
        """Write a request's next output down and give it the request's own id.

        Args:
            entry: the request, from `entry_of`.
            output: as a replica sent it, its request id marked with the attempt.
            offset: how many tokens of the attempt the replica had sent before it.

        Raises:
            TokensLost: tokens before `offset` never arrived.
        """
        if entry.base + offset != len(entry.tokens):
            raise TokensLost(entry.request.request_id)
        now = time.monotonic()
        entry.last_token_at = now
        if entry.first_token_at is None:
            entry.first_token_at = now
            if entry.on_first_token is not None:
                entry.on_first_token()
        entry.tokens.extend(output.new_token_ids)
        output.request_id = entry.request.request_id
        if entry.base:
            # Counts the delivered tokens as prompt, which they are to this replica alone.
            output.prefill_stats = None
        elif output.prefill_stats is not None:
            entry.cached_tokens = output.prefill_stats.num_cached_tokens
        if output.finished:
            self.close(output.request_id)
