"""The fleet's state as Serve sees it: which models have replicas that can answer."""

import asyncio
import logging
from dataclasses import dataclass
from enum import StrEnum

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
    target: int = 0
    failed: bool = False


class FleetWatch:
    """Asks Serve's controller for the replicas of each deployment, once a second.

    While the controller cannot be reached, the last answer stands: running replicas do not need it.
    """

    def __init__(self, deployments: list[str]) -> None:
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
        application = serve.status().applications.get(self._application)
        if application is None:
            return
        for name, deployment in application.deployments.items():
            if name in self._replicas:
                states = deployment.replica_states
                running = states.get("RUNNING", 0)
                failed = deployment.status == "DEPLOY_FAILED" or (
                    deployment.status == "UNHEALTHY" and not running and not states.get("STARTING", 0)
                )
                self._replicas[name] = Replicas(running, sum(states.values()), failed)
