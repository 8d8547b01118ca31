"""Ray Serve's client inside a replica or builder: its private names, each used here and nowhere else.

`serve.status()` tells the same, but builds whole schema objects for it, which costs a gateway a tenth of a core.
tests/unit/test_ray_contract.py fails when a pinned version changes these names.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from logging.handlers import MemoryHandler
from typing import Any

import ray
from pydantic import PrivateAttr
from ray._common.tls_utils import add_port_to_grpc_server
from ray._private import worker as ray_worker
from ray.serve._private import replica as serve_replica
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY, SERVE_LOGGER_NAME, SERVE_NAMESPACE
from ray.serve.context import _get_global_client
from ray.serve.deployment import Deployment


@dataclass(frozen=True)
class Replicas:
    """The replicas of one deployment."""

    running: int = 0
    """Those that answer."""
    since: float = 0.0
    """When the first of them was seen, after there was none; seconds of the monotonic clock."""
    target: int = 1
    """How many Serve wants to be running now."""
    failed: bool = False
    """Whether Serve has given up starting them."""
    ids: frozenset[str] = frozenset()
    """Of those that answer."""
    settings: Any = None
    """The deployment's `user_config`."""


@dataclass(frozen=True)
class Deployed:
    """An application as it is deployed now."""

    deployments: dict[str, Replicas] = field(default_factory=dict)
    """In the order in which they were built."""
    args: dict[str, Any] | None = None
    """What its builder was given; None: it was not deployed by a Serve config."""


def listening_host() -> str:
    """The address that Serve's HTTP proxy listens on."""
    return str(_client().http_config.host)


def listen_on_node_address() -> None:
    """Have other deployments reach this process at its node's address alone; for the constructor of a deployment.

    Serve starts a server for their calls once the constructor is done, gives callers the node's address, and yet
    listens on all addresses (ray/serve/_private/replica.py, `_on_initialized`).
    """
    serve_replica.add_port_to_grpc_server = _add_port_of_node  # type: ignore[attr-defined]


def _add_port_of_node(server: Any, _everywhere: str) -> int:
    host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    address = f"[{host}]:0" if ":" in host else f"{host}:0"
    return int(add_port_to_grpc_server(server, address))  # type: ignore[no-untyped-call]


def keep_log() -> None:
    """Have Serve's log go on after `logging.config.dictConfig`, and show its lines at once; for the same constructors.

    vLLM calls that with each configuration it makes, and it closes all handlers. A closed memory handler keeps all
    records for ever and writes none, and a controller that comes back takes a replica that has one for failed
    (ray/serve/_private/logging_utils.py, `get_component_logger_file_path`). On its fast path Serve would also keep
    up to a thousand lines back.
    """
    for handler in logging.getLogger(SERVE_LOGGER_NAME).handlers:
        if isinstance(handler, MemoryHandler):
            handler.close = handler.flush  # type: ignore[method-assign]
            handler.flushLevel = logging.NOTSET


def on_stop(called: Callable[[], None], leaving: Callable[[], bool]) -> None:
    """Tell this replica that it is being stopped; for the constructor of a deployment.

    Serve only waits then for the requests in it, and lets callers that do not know yet send more of them.

    Args:
        called: when Serve begins to wait.
        leaving: while true, new calls go back to their callers' routers, which take them elsewhere.
    """
    drain = serve_replica.Replica._drain_ongoing_requests
    refuses = serve_replica.Replica._is_replica_quiescing

    async def announce(self: Any, *arguments: Any, **options: Any) -> None:
        called()
        await drain(self, *arguments, **options)

    def refuse(self: Any, metadata: Any) -> bool:
        return leaving() or refuses(self, metadata)

    serve_replica.Replica._drain_ongoing_requests = announce  # type: ignore[method-assign]
    serve_replica.Replica._is_replica_quiescing = refuse  # type: ignore[method-assign, assignment]


def on_sigterm(called: Callable[[], None]) -> None:
    """Have `called`, by the main thread, when this process gets SIGTERM; Ray would end it at once."""

    def end(*_: object, **__: object) -> None:
        called()

    ray_worker.raise_sys_exit_with_custom_error_message = end  # type: ignore[attr-defined]


def kill_replica(application: str, deployment: str, replica: str) -> bool:
    """Kill the process of a replica, be it stopped; False: there is none. Blocks for the call to Ray's GCS."""
    name = ReplicaID(replica, DeploymentID(deployment, application)).to_full_id_str()
    try:
        ray.kill(ray.get_actor(name, namespace=SERVE_NAMESPACE))
    except ValueError:
        return False
    return True


def behind_haproxy() -> bool:
    """Whether clients reach this process through Serve's HAProxy."""
    return bool(RAY_SERVE_ENABLE_HA_PROXY)


def deployed(application: str) -> Deployed | None:
    """What the controller says of an application; None while it builds it anew, and once that has failed.

    Blocks for one call to it.
    """
    details = _client().get_serve_details()["applications"].get(application, {})
    if not details.get("deployments"):
        return None
    deployments = {name: _replicas(each) for name, each in details["deployments"].items()}
    return Deployed(deployments, (details.get("deployed_app_config") or {}).get("args"))


def running(application: str) -> dict[str, frozenset[str]]:
    """The ids of the replicas that answer, by deployment, whatever becomes of the application. Blocks as `deployed`."""
    found = ray.get(_client()._controller._all_running_replicas.remote())
    return {
        deployment.name: frozenset(each.replica_id.unique_id for each in replicas)
        for deployment, replicas in found.items()
        if deployment.app_name == application
    }


def _replicas(deployment: dict[str, Any]) -> Replicas:
    return Replicas(
        running=sum(replica["state"] == "RUNNING" for replica in deployment["replicas"]),
        target=deployment["target_num_replicas"],
        # The second is what becomes of a model that Serve starts replicas of because there are requests.
        failed=deployment["status"] == "DEPLOY_FAILED" or deployment["status_trigger"] == "REPLICA_STARTUP_FAILED",
        ids=frozenset(each["replica_id"] for each in deployment["replicas"] if each["state"] == "RUNNING"),
        settings=deployment["deployment_config"].get("user_config"),
    )


def with_version(deployment: Deployment, version: str) -> Deployment:
    """A deployment whose replicas are replaced when this version changes, and not with each change of the config.

    Serve gives all deployments of an application one version, a digest of the application's arguments
    (ray/serve/_private/application_state.py, `build_serve_application`), so that a model more or less would
    restart all models.
    """
    config = _Versioned(**dict(deployment._deployment_config))
    config._own = version
    return Deployment(deployment.name, config, deployment._replica_config, version, _internal=True)


class _Versioned(DeploymentConfig):
    _own: str = PrivateAttr("")

    def to_proto_bytes(self) -> bytes:
        """The last that Serve's builder does with a config, once it has put its own version in."""
        self.version = self._own
        proto: bytes = super().to_proto_bytes()  # type: ignore[no-untyped-call]
        return proto


def runtime_env() -> dict[str, Any]:
    """The environment that this application is built and run in, as its Serve config says."""
    return dict(ray.get_runtime_context().runtime_env)


def _client() -> Any:
    return _get_global_client()
