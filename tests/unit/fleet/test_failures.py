"""What the errors of Ray, Serve and gRPC mean for the request whose call they end."""

import asyncio

import grpc
import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    AuthenticationError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    PendingCallsLimitExceeded,
    RaySystemError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from serve_app.fleet.channel import SinkGone
from serve_app.fleet.failures import Loss, classify, is_cancelled_here
from serve_app.vllm_seam import EngineDeadError


def raised_in_replica(cause: Exception) -> BaseException:
    """As Ray hands it to the caller."""
    return RayTaskError("generate", "traceback", cause, ip="127.0.0.1").as_instanceof_cause()


def grpc_error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (ActorDiedError(), Loss.DEATH),
        (ActorUnavailableError("no route", None), Loss.DEATH),
        (NodeDiedError("node"), Loss.DEATH),
        (LocalRayletDiedError(), Loss.DEATH),
        (WorkerCrashedError(), Loss.DEATH),
        (OutOfMemoryError("oom"), Loss.DEATH),
        (RaySystemError("raylet"), Loss.DEATH),
        (ObjectLostError("00" * 28, None, ""), Loss.DEATH),
        (OwnerDiedError("00" * 28, None, ""), Loss.DEATH),
        (grpc_error(grpc.StatusCode.UNAVAILABLE), Loss.DEATH),
        (grpc_error(grpc.StatusCode.INTERNAL), Loss.DEATH),
        (grpc_error(grpc.StatusCode.UNKNOWN), Loss.DEATH),
        (raised_in_replica(EngineDeadError()), Loss.DEATH),
        (EngineDeadError(), Loss.DEATH),
        (raised_in_replica(SinkGone("tcp://gateway")), Loss.DROPPED),
        (TaskCancelledError(), Loss.DROPPED),
        (RequestCancelledError("r"), Loss.DROPPED),
        (grpc_error(grpc.StatusCode.CANCELLED), Loss.DROPPED),
        (BackPressureError(1, 1), Loss.BUSY),
        (DeploymentUnavailableError(DeploymentID("replica", "chat")), Loss.BUSY),
        (ReplicaUnavailableError("replica-1"), Loss.BUSY),
        (PendingCallsLimitExceeded(), Loss.BUSY),
        (raised_in_replica(ValueError("no such parameter")), Loss.FAILED),
        (ValueError("cannot be pickled"), Loss.FAILED),
        (AuthenticationError("token"), Loss.FAILED),
        (grpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED), Loss.FAILED),
    ],
    ids=lambda value: value.value if isinstance(value, Loss) else type(value).__name__,
)
def test_what_an_error_means(error: BaseException, loss: Loss) -> None:
    assert classify(error) is loss


async def test_a_cancellation_is_told_from_one_on_the_other_side() -> None:
    async def wait_for(what: asyncio.Future[None]) -> bool:
        try:
            await what
        except asyncio.CancelledError:
            return is_cancelled_here()
        return False

    there: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(wait_for(there))
    await asyncio.sleep(0)
    there.cancel()
    assert await task is False

    task = asyncio.create_task(wait_for(asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    task.cancel()
    assert await task is True
