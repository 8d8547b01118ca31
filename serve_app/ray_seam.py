"""Ray Serve's client inside a replica or builder: its private names, each used here and nowhere else.

`serve.status()` tells the same, but builds whole schema objects for it, which costs a gateway a tenth of a core.
tests/unit/test_ray_contract.py fails when a pinned version changes these names.
"""

from dataclasses import dataclass
from typing import Any

import ray
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica as serve_replica
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY
from ray.serve.context import _get_global_client


@dataclass(frozen=True)
class Replicas:
    """The replicas of one deployment."""

    running: int = 0
    """Those that answer."""
    target: int = 1
    """How many Serve wants to be running now."""
    failed: bool = False
    """Whether Serve has given up starting them."""


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


def behind_haproxy() -> bool:
    """Whether clients reach this process through Serve's HAProxy."""
    return bool(RAY_SERVE_ENABLE_HA_PROXY)


def replicas(application: str) -> dict[str, Replicas]:
    """The replicas of every deployment of an application, from the controller. Blocks for one call to it."""
    details = _client().get_serve_details()["applications"].get(application, {"deployments": {}})
    return {
        name: Replicas(
            running=sum(replica["state"] == "RUNNING" for replica in deployment["replicas"]),
            target=deployment["target_num_replicas"],
            failed=deployment["status"] == "DEPLOY_FAILED",
        )
        for name, deployment in details["deployments"].items()
    }


def _client() -> Any:
    return _get_global_client()
