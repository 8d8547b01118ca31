"""The ticket of one request: how it is let in, how far it has come, and what it came to.

A request is let in where its prompt has become tokens and nothing has been computed yet: when vLLM's front end
hands it to the fleet client, which awaits `admit`. One HTTP request can have several requests to the engine core
there (n choices, a list of prompts): they are charged together, and get their places together.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

from serve_app.fleet.journal import Entry
from serve_app.gateway.admission import Admission, Slot
from serve_app.gateway.errors import (
    NO_RETRY,
    ContextLengthExceeded,
    GatewayError,
    Overloaded,
    RequestRefused,
    UpstreamFailed,
)
from serve_app.gateway.keys.caller import Caller
from serve_app.gateway.limits.limiter import Quota
from serve_app.gateway.limits.requests import Reservation
from serve_app.gateway.usage import Usage, usage_of

# vLLM's front end stands between the gateway and the fleet client and carries nothing of ours but the context.
current: ContextVar["Ticket"] = ContextVar("ticket")


async def admit(entry: Entry) -> None:
    """Let a request of the current ticket in: the hook of `FleetClient`."""
    await current.get().admit(entry)


class Ticket:
    """One HTTP request on a model route. Also the `Progress` that its deadlines go by."""

    def __init__(
        self,
        model: str,
        caller: Caller,
        admission: Callable[[], Admission],
        reservation: Reservation,
        quota: Quota,
        *,
        deadline: float | None,
        bounded: bool,
        prompts: int,
        choices: int,
        up_since: Callable[[], float | None],
        before: "Ticket | None" = None,
    ) -> None:
        """Args:
        model: the id of the model that it is for.
        caller: whose request it is.
        admission: the model's, once its front end is there.
        reservation: of the caller's limits, with the request charged.
        quota: those limits.
        deadline: when the client must have its first token, in the event loop's time.
        bounded: whether the client itself says how long the answer may get.
        prompts: how many prompts are known to come; more can (texts to embed, pieces of speech).
        choices: answers to each prompt.
        up_since: when the model got a replica that can answer, in the event loop's time; None: it has none.
        before: that of the same request at another model, which had no place for it; its charge is not made again.
        """
        self.model = model
        self.entries: list[Entry] = []
        self.refusal: GatewayError | None = None
        self.on_refusal: Callable[[GatewayError], None] | None = None
        self._caller = caller
        self._admission = admission
        self._reservation = reservation
        self._quota = quota
        self._deadline = deadline
        self._bounded = bounded
        self._up_since = up_since
        self._prompts = prompts
        self._choices = choices
        self._counted: dict[str | None, Entry] = {}
        """The first choice of each prompt."""
        self._all_counted = asyncio.Event()
        self._entering: asyncio.Task[list[Slot]] | None = None
        self._charged: int = before._charged if before is not None else 0
        self._due = 0
        """Tokens that this request comes to at this model, and those that it has been charged."""

    @property
    def begun(self) -> bool:
        """Whether any token has come."""
        return any(entry.tokens for entry in self.entries)

    @property
    def loading(self) -> bool:
        """Whether it waits for the model's first replica."""
        return self._up_since() is None

    @property
    def deadline(self) -> float | None:
        """When the client must have its first token, in the event loop's time; None: it does not say."""
        return self._deadline

    @property
    def dispatched(self) -> float | None:
        """When the first request went to a replica, in the event loop's time; None while none can work on it."""
        starts = [entry.dispatched_at for entry in self.entries if entry.dispatched_at is not None]
        since = self._runs_since()
        return max(min(starts), since) if starts and since is not None else None

    @property
    def token(self) -> float | None:
        """When the last token came, in the event loop's time: now, while no replica can work on it; None: none has."""
        tokens = [entry.last_token_at for entry in self.entries if entry.last_token_at is not None]
        return max(*tokens, _or_now(self._runs_since())) if tokens else None

    def _runs_since(self) -> float | None:
        """Since when a replica could answer; None: none can, or a move waits for its turn, and no deadline runs."""
        return None if any(entry.held for entry in self.entries) else self._up_since()

    def usage(self) -> Usage:
        """What the request has come to so far."""
        return usage_of(self.entries)

    def check(self) -> None:
        """Raise Overloaded, where that is clear before the prompt has become tokens."""
        try:
            self._admission().check(self._caller.id, self._caller.tier, self._deadline)
        except Overloaded as refusal:
            self.refusal = refusal
            raise

    async def admit(self, entry: Entry) -> None:
        """Wait until a request may go to a replica. One that may not is never let in: its answer is called off."""
        try:
            if entry.refused:
                raise RequestRefused
            self._fit(entry)
            slot = await self._enter(entry)
        except GatewayError as refusal:
            self.refuse(refusal)
            # Raised here, it would pass through vLLM, which logs a traceback for each.
            await asyncio.Event().wait()
            raise
        self.entries.append(entry)
        entry.on_error = lambda: self._give_up(entry)
        entry.on_refused = lambda: self.refuse(UpstreamFailed(NO_RETRY) if entry.replicas else RequestRefused())
        if slot is not None:
            # The wait for a replica says nothing of how long an answer takes.
            entry.on_first_token = lambda: slot.first_token(_or_now(self._up_since()))
            entry.on_close = lambda: slot.leave(entry.prompt_tokens + len(entry.tokens))

    def note_sent(self, prompt: str, choice: int, tokens: int) -> None:
        """Note the tokens of one choice that are on their way to the client. `prompt`: vLLM's id of its prompt."""
        # The choices of a prompt are let in in their order, those of several prompts in any.
        choices = [entry for entry in self.entries if entry.request.external_req_id == prompt]
        choices[choice].sent += tokens

    def refuse(self, error: GatewayError) -> None:
        """Call the answer off."""
        self.refusal = self.refusal or error
        if self.on_refusal is not None:
            self.on_refusal(error)

    def _give_up(self, entry: Entry) -> None:
        if entry.request.pooling_params is not None:  # vLLM would answer with an empty vector
            self.refuse(UpstreamFailed())
        else:  # and here it says that it failed, once it has passed on what there is
            self.refusal = self.refusal or UpstreamFailed()

    def close(self) -> None:
        """The request has ended: give back what its requests to the engine core have not given back themselves."""
        for entry in self.entries:
            if entry.on_close is not None:
                entry.on_close()
        if self._entering is None or self._entering.cancel() or self._entering.exception() is not None:
            return
        for slot in self._entering.result():
            slot.leave(sum(entry.prompt_tokens for entry in self.entries if not entry.most_tokens))

    async def _enter(self, entry: Entry) -> Slot | None:
        """Wait for the place of a request to the engine core; None: it is not generated from and shares one."""
        prompt = entry.request.external_req_id
        if prompt not in self._counted:
            self._counted[prompt] = entry
            if len(self._counted) > self._prompts:
                return await self._enter_late(entry)
        if len(self._counted) == self._prompts:
            self._all_counted.set()
        slots = await self._together()
        return slots.pop() if entry.most_tokens else None

    async def _together(self) -> list[Slot]:
        if self._entering is None:
            self._entering = asyncio.create_task(self._enter_together())
        return await asyncio.shield(self._entering)

    async def _enter_together(self) -> list[Slot]:
        """Once a request: charge all its prompts with all their choices, and wait for their places."""
        await self._all_counted.wait()
        entries = list(self._counted.values())[: self._prompts]
        await self._charge(sum(entry.prompt_tokens + self._choices * entry.most_tokens for entry in entries))
        costs = [entry.prompt_tokens + entry.most_tokens for entry in entries for _ in range(self._choices)]
        return await self._admission().enter(self._caller.id, self._caller.tier, costs, self._deadline)

    async def _enter_late(self, entry: Entry) -> Slot | None:
        """Each of the prompts beyond those that were known to come is charged by itself."""
        cost = entry.prompt_tokens + entry.most_tokens
        await self._charge(cost)
        if entry.most_tokens:
            return (await self._admission().enter(self._caller.id, self._caller.tier, [cost], self._deadline))[0]
        # Texts to embed are many, short and come at once: one place is enough.
        await self._together()
        return None

    async def _charge(self, tokens: int) -> None:
        self._due += tokens
        if (missing := self._due - self._charged) > 0:
            self._charged += missing
            await self._reservation.reserve_tokens(missing)

    def _fit(self, entry: Entry) -> None:
        """Bound an answer whose length the client leaves open by what the key may use at all."""
        params = entry.request.sampling_params
        context = self._caller.limits.context
        if context is not None and entry.prompt_tokens + (entry.most_tokens if self._bounded else 1) > context:
            raise ContextLengthExceeded(
                f"Prompt and answer are {entry.prompt_tokens + entry.most_tokens} tokens; this key may use {context}."
            )
        if params is None or params.max_tokens is None or self._bounded:
            return
        for limit, answers in ((context, 1), (self._quota.tokens_per_minute, self._choices)):
            most = 0 if limit is None else (limit - entry.prompt_tokens) // answers
            if most > 0:
                params.max_tokens = min(params.max_tokens, most)


def _or_now(time: float | None) -> float:
    return asyncio.get_running_loop().time() if time is None else time
