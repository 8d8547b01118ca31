"""What it means for a request that its call to a replica failed: the one place that reads Ray's and Serve's errors.

A replica's death shows as ActorDiedError or ActorUnavailableError, that of its node also as other errors of Ray or
gRPC. What the replica itself raises comes as a RayTaskError, which is an instance of the cause as well.
"""

import asyncio
from enum import Enum

import grpc  # type: ignore[import-untyped]
from ray.exceptions import (
    AuthenticationError,
    ObjectStoreFullError,
    OutOfDiskError,
    PendingCallsLimitExceeded,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from serve_app.fleet.channel import SinkGone
from serve_app.vllm_seam import EngineDeadError


class Loss(Enum):
    """Why a replica does not carry a request any more."""

    DEATH = "death"
    """The replica is dead, or cannot be reached any more: the request moves, and may have been the cause."""
    DROPPED = "dropped"
    """The replica gave the request up, or tokens of it did not arrive: it moves, and is not to blame."""
    PLANNED = "planned"
    """The replica is to be stopped: the request moves as often as it needs to."""
    BUSY = "busy"
    """No replica took the request now; one may in a moment."""
    FAILED = "failed"
    """The request itself failed, and would again."""


BUSY = (BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError, PendingCallsLimitExceeded)
DROPPED = (SinkGone, TaskCancelledError)
# gRPC's own errors: those of the replica's code are part of its answers.
LOST_CONNECTIONS = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL})
# The service's own trouble with Ray, which no other replica would mend.
OURS = (AuthenticationError, ObjectStoreFullError, OutOfDiskError)

# What a call to an actor raises when it cannot be reached: one of the service's own, or Serve's controller.
UNREACHABLE: tuple[type[Exception], ...] = (RayError, RayServeException, grpc.aio.AioRpcError, OSError)


def classify(error: BaseException) -> Loss:  # noqa: PLR0911 - a table reads worse
    """What a failed call means for its request."""
    if isinstance(error, BUSY):
        return Loss.BUSY
    if isinstance(error, DROPPED):
        return Loss.DROPPED
    if isinstance(error, (RayActorError, EngineDeadError)):
        return Loss.DEATH
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() is grpc.StatusCode.CANCELLED:
            return Loss.DROPPED
        return Loss.DEATH if error.code() in LOST_CONNECTIONS else Loss.FAILED
    if isinstance(error, (RayTaskError, *OURS)):
        return Loss.FAILED
    return Loss.DEATH if isinstance(error, RayError) else Loss.FAILED


def is_cancelled_here() -> bool:
    """Whether a CancelledError is this task's own; else what it awaited was cancelled on the other side."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
