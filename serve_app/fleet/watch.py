"""The fleet's state as Serve sees it: which models are deployed, and which of them have replicas that can answer."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import ray
from ray import serve

from serve_app import ray_seam
from serve_app.fleet.failures import UNREACHABLE
from serve_app.ray_seam import Deployed, Replicas

logger = logging.getLogger("ray.serve")

# While a model has fewer replicas than it should, and while all is well. A lost replica wakes the watch at once.
LOADING_POLL_S = 1.0
CALM_POLL_S = 5.0


class State(StrEnum):
    """Whether a model can answer."""

    READY = "ready"
    LOADING = "loading"
    ASLEEP = "asleep"
    """It has no replica, and the next request to it starts one."""
    FAILED = "failed"


class FleetWatch:
    """Asks Serve's controller for the deployments of this application and their replicas.

    While the controller cannot be reached the last answer stands: running replicas do not need it. While it builds the
    application anew, and where that has failed, what was deployed last stands, whose replicas come and go all the same.
    """

    def __init__(self) -> None:
        self.gpu_available = False
        self.application = serve.get_replica_context().app_name
        self.deployed: Deployed | None = None
        """What was deployed last; None: that is not known yet."""
        self._replicas: dict[str, Replicas] = {}
        self._woken = asyncio.Event()
        self.looked = asyncio.Event()
        """Set after the first look."""

    def __getitem__(self, deployment: str) -> Replicas:
        return self._replicas.get(deployment, Replicas())

    def of(self, deployment: str) -> "Watched":
        return Watched(self, self.application, deployment)

    def wake(self) -> None:
        """Have a look now: a replica seems to be gone."""
        self._woken.set()

    async def run(self, on_look: Callable[[], None]) -> None:
        """Look for ever; `on_look` is called after each look."""
        while True:
            self._woken.clear()
            try:
                await asyncio.to_thread(self._poll)
            except UNREACHABLE as error:
                logger.warning("Serve's controller does not answer: %s", type(error).__name__)
            self.looked.set()
            on_look()
            calm = self._replicas and all(each.running >= each.target for each in self._replicas.values())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), CALM_POLL_S if calm else LOADING_POLL_S)

    def _poll(self) -> None:
        self.gpu_available = ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
        if (deployed := ray_seam.deployed(self.application)) is not None:
            self.deployed, seen = deployed, deployed.deployments
        else:
            alive = ray_seam.running(self.application)
            ids = {name: alive.get(name, frozenset[str]()) for name in (*self._replicas, *alive)}
            seen = {name: replace(self[name], running=len(each), ids=each) for name, each in ids.items()}
        now = time.monotonic()
        since = {name: self[name].since if self[name].running else now for name in seen}
        self._replicas = {name: replace(each, since=since[name]) for name, each in seen.items()}


class Watched:
    """One deployment of the fleet (see `fleet.peers.Deployment`)."""

    def __init__(self, watch: FleetWatch, application: str, name: str) -> None:
        self._watch = watch
        self._application = application
        self._name = name

    def wake(self) -> None:
        self._watch.wake()

    def running(self) -> frozenset[str]:
        return self._watch[self._name].ids

    def kill(self, replica: str) -> bool:
        return ray_seam.kill_replica(self._application, self._name, replica)
