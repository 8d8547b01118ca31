"""The fleet's state as Serve sees it: which models have replicas that can answer."""

import asyncio
import logging
from dataclasses import dataclass
from enum import StrEnum

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

logger = logging.getLogger("ray.serve")

POLL_S = 1.0


class State(StrEnum):
    """Whether a model can answer."""

    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"


@dataclass(frozen=True)
class Replicas:
    """The replicas of one model."""

    running: int = 0
    """Those that answer."""
    failed: bool = False
    """Whether Serve has given up starting them."""


class FleetWatch:
    """Asks Serve's controller for the replicas of each deployment, once a second.

    While the controller cannot be reached, the last answer stands: running replicas do not need it.
    """

    def __init__(self, deployments: list[str]) -> None:
        self.gpu_available = False
        self._application = serve.get_replica_context().app_name
        self._replicas = dict.fromkeys(deployments, Replicas())

    def __getitem__(self, deployment: str) -> Replicas:
        return self._replicas[deployment]

    async def run(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._poll)
            except (RayError, RayServeException) as error:
                logger.warning("Serve's controller does not answer: %s", type(error).__name__)
            await asyncio.sleep(POLL_S)

    def _poll(self) -> None:
        self.gpu_available = ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
        application = serve.status().applications.get(self._application)
        for name, deployment in application.deployments.items() if application else ():
            if name in self._replicas:
                running = {str(state): count for state, count in deployment.replica_states.items()}.get("RUNNING", 0)
                failed = deployment.status.value == "DEPLOY_FAILED"
                self._replicas[name] = Replicas(running, failed)
