"""One attempt of a request: the Serve call that has a replica generate."""

import asyncio
import contextlib
import logging
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.fleet.channel import Sink
from serve_app.fleet.failures import Loss, classify, is_cancelled_here
from serve_app.fleet.journal import Entry
from serve_app.fleet.routing import Balancer
from serve_app.vllm_seam import MsgpackEncoder

logger = logging.getLogger("ray.serve")

# How long the last tokens may trail the call that says they were sent, and what a replica sent before it died.
SETTLE_S = 5.0
DRAIN_S = 0.05


class ReplicaCall:
    """Calls the replicas of one deployment."""

    def __init__(self, replicas: DeploymentHandle[Any], sink: Sink, balancer: Balancer) -> None:
        """`balancer`: which of them gets a call."""
        self._balancer = balancer
        self._generate = replicas.options(method_name="generate")
        self._sink = sink
        self._encoder = MsgpackEncoder()

    async def __call__(self, entry: Entry) -> Loss | None:
        """Have a replica work on the present attempt until it ends; None: the whole request has ended."""
        request = entry.attempt_request()
        if not entry.suspicion:  # of one under suspicion the replica says when its turn has come
            entry.begin()
        hint = self._balancer.hint(request)
        try:
            frames = [bytes(frame) for frame in self._encoder.encode(request)]  # type: ignore[arg-type]
            call = self._generate.remote(self._sink, request.request_id, frames, entry.suspicion.value, hint=hint)
            await call
            if not await _finished(entry, SETTLE_S):
                return Loss.DROPPED
            self._balancer.learn(len(entry.tokens))
            return None
        except asyncio.CancelledError:
            if is_cancelled_here():
                call.cancel()  # type: ignore[no-untyped-call]
                raise
            loss, error_name = Loss.DROPPED, "cancelled there"
        except Exception as error:  # the boundary to Serve: whatever failed, the other requests go on
            loss, error_name = classify(error), type(error).__name__
            if loss is Loss.DEATH:
                hint.not_taken(hint.replica)
            if loss is Loss.FAILED:
                logger.exception("request %s failed in the replica", request.request_id)
        finally:
            hint.end()
        if loss is not Loss.BUSY:
            logger.warning("request %s: %s (%s)", request.request_id, loss.value, error_name)
        return None if loss is Loss.DEATH and await _finished(entry, DRAIN_S) else loss


async def _finished(entry: Entry, seconds: float) -> bool:
    """Whether the request's last output arrives in time."""
    if entry.finished.is_set():
        return True
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(entry.finished.wait(), seconds)
    return entry.finished.is_set()
