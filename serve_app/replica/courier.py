"""The way of tokens out of a replica: which gateway an output is for, and when it leaves.

Under load most of the work outside the engine is done once for each message and chunk of a stream, whatever is in it.
So a busy replica holds tokens back for those of the next steps. First tokens, last ones, outputs that carry more than
tokens, and those of requests that may be what kills replicas leave at once.
"""

import asyncio
import logging
from collections.abc import Collection, Iterator
from operator import attrgetter, is_

from serve_app.fleet.channel import SinkGone, TokenSender
from serve_app.vllm_seam import EngineCoreOutput, EngineCoreOutputs, SchedulerStats

logger = logging.getLogger("ray.serve")

MOST_TOKENS = 8
"""That are held back, for one request."""
HELD_BACK_S = 0.1
"""A token waits no longer for those of the next steps."""

_JOINED = {"request_id", "new_token_ids", "finish_reason", "stop_reason"}
_extras = attrgetter(*(name for name in EngineCoreOutput.__struct_fields__ if name not in _JOINED))
_NO_EXTRAS = _extras(EngineCoreOutput("", []))
_GAUGES = {"num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "kv_cache_usage", "step_counter"}
_GAUGES |= {"current_wave", "num_kv_fetch_reqs_by_stage", "waiting_lora_adapters", "running_lora_adapters"}
_increments = attrgetter(*(name for name in SchedulerStats.__dataclass_fields__ if name not in _GAUGES))
_NO_INCREMENTS = _increments(SchedulerStats())


class Attempt:
    """One gateway's request in this replica's engine core."""

    __slots__ = ("address", "answered", "done", "held", "sent", "suspected")

    def __init__(self, address: str, suspected: bool = False) -> None:
        self.address = address
        self.suspected = suspected
        """Whether it is to be known by the token where it was when this replica died."""
        self.sent = 0
        """Tokens that have left."""
        self.held: list[EngineCoreOutput] = []
        self.answered = asyncio.Event()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hold(self, output: EngineCoreOutput) -> bool:
        """Take an output; whether it has to leave at once."""
        plain = all(map(is_, _extras(output), _NO_EXTRAS))
        if plain and self.held:
            last = self.held[-1]
            last.new_token_ids += output.new_token_ids
            last.finish_reason, last.stop_reason = output.finish_reason, output.stop_reason
        else:
            self.held.append(output)
        return self.suspected or not plain or not self.sent or output.finished

    def release(self) -> Iterator[tuple[int, EngineCoreOutput]]:
        """What is held, each output with how many tokens have left before it."""
        for output in self.held:
            yield self.sent, output
            self.sent += len(output.new_token_ids)
        self.held = []


class Courier:
    """Brings the outputs of each engine step to the gateways that have asked for them."""

    def __init__(self, sender: TokenSender, busy_from: int) -> None:
        """`busy_from`: one token more is held back for each so many requests."""
        self.attempts: dict[str, Attempt] = {}
        """By request id, marked with the attempt."""
        self.stats = SchedulerStats()
        """Of the last step."""
        self._sender, self._busy_from = sender, busy_from
        self._untold: SchedulerStats | None = None
        self._timer: asyncio.TimerHandle | None = None

    def push(self, step: EngineCoreOutputs) -> None:
        """Take one engine step."""
        now: list[Attempt] = []
        ended: list[Attempt] = []
        enough, full = min(1 + len(self.attempts) // self._busy_from, MOST_TOKENS), False
        for output in step.outputs:
            if (attempt := self.attempts.get(output.request_id)) is None:
                continue
            if attempt.hold(output):
                now.append(attempt)
            full |= len(attempt.held[-1].new_token_ids) >= enough
            attempt.answered.set()
            if output.finished:
                ended.append(attempt)
        if step.scheduler_stats is not None:
            self.stats = self._untold = step.scheduler_stats
        if full:
            self.flush()
        else:
            self._send(now, everyone=self._untold is not None and _increments(self._untold) != _NO_INCREMENTS)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(HELD_BACK_S, self.flush)
        for attempt in ended:
            if not attempt.done.done():
                attempt.done.set_result(None)

    def flush(self) -> None:
        """Send all that is held."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._send(self.attempts.values(), everyone=self._untold is not None)

    def give_up(self, gone: SinkGone, address: str) -> None:
        """Abort what this replica computes for a gateway that is dead or does not read."""
        given_up = [each for each in self.attempts.values() if each.address == address and not each.done.done()]
        for attempt in given_up:
            attempt.done.set_exception(gone)
            attempt.answered.set()
        if given_up:
            logger.warning("gateway at %s is gone; %d of its requests are aborted", address, len(given_up))

    def _send(self, attempts: Collection[Attempt], everyone: bool) -> None:
        """Send what these attempts hold, and the engine core's figures to `everyone` or to the same gateways."""
        messages: dict[str, tuple[list[int], list[EngineCoreOutput]]] = {}
        if everyone:
            messages = {address: ([], []) for address in self._sender.addresses()}
        for attempt in attempts:
            for offset, output in attempt.release():
                offsets, outputs = messages.setdefault(attempt.address, ([], []))
                offsets.append(offset)
                outputs.append(output)
        for address, (offsets, outputs) in messages.items():
            try:
                self._sender.push(address, offsets, EngineCoreOutputs(outputs=outputs, scheduler_stats=self._untold))
            except SinkGone as gone:
                self.give_up(gone, address)
        if everyone:
            self._untold = None
