"""The way of a request to the gateway as Serve builds it: connection, edge, gateway, and models that do not answer."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import uvicorn
from ray.serve._private.http_util import RequestIdMiddleware, convert_object_to_asgi_messages
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.config import ModelConfig, load_model
from serve_app.fleet.watch import FleetWatch
from serve_app.gateway.api import GatewayApp
from serve_app.gateway.config import GatewayConfig
from serve_app.gateway.connection import Connection
from serve_app.gateway.cors import Cors, parse_origins
from serve_app.gateway.edge import Edge
from serve_app.gateway.inference import Inference
from serve_app.gateway.keys.keyring import Keyring
from serve_app.gateway.limits.memory import MemoryLimiter
from serve_app.gateway.limits.requests import RequestLimits
from serve_app.gateway.models import Model, Models
from serve_app.gateway.policy.check import Policy
from serve_app.ledger.usage import UsageReports
from serve_app.ray_seam import Replicas
from tests.service import wait_for

KEY = "the-operators-key"


class Watch(dict[str, Replicas]):
    """The replicas of each deployment, as a test says."""

    gpu_available = False


def models_with(*replicas: Replicas, **settings: Any) -> Models:
    """Models m0, m1 and so on, with these replicas and settings and no front end."""
    watch, models = Watch(), []
    for number, each in enumerate(replicas):
        handle: Any = SimpleNamespace(deployment_name=f"replica-{number}")
        watch[handle.deployment_name] = each
        config = ModelConfig.model_validate({**load_model("demo").model_dump(), "id": f"m{number}", **settings})
        models.append(Model(config, handle))
    return Models(models, {}, cast("FleetWatch", watch))


def gateway(models: Models, config: GatewayConfig | None = None, origins: str = "") -> ASGIApp:
    """The gateway's app as its deployment builds it."""
    config = config or GatewayConfig()
    policy = Policy(config.policy, b"secret")
    app = GatewayApp(
        models=models,
        keyring=Keyring(config.keys, {"PROXY_API_KEY": KEY}),
        limits=RequestLimits(MemoryLimiter(config.limits.lease_s), config.limits.lease_s),
        quota=config.limits.quota({}),
        inference=Inference(models, policy, None, config),
        policy=policy,
        usage=UsageReports(None),
        registries=[],
    )
    return Cors(app, parse_origins(origins))


def edge(app: ASGIApp, origins: str = "", proxies: str | None = None) -> ASGIApp:
    """An app behind the layers that Serve puts before it, `proxies` as of `Edge`, and Serve's own health check."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/-/healthz":
            return await app(scope, receive, send)
        for message in convert_object_to_asgi_messages("success"):
            await send(message)

    return Edge(RequestIdMiddleware(serve), parse_origins(origins), proxies)


@contextmanager
def listening(app: ASGIApp) -> Iterator[int]:
    """The port of a server of this app, which runs in a thread."""
    settings: Mapping[str, Any] = {"lifespan": "off", "log_level": "critical", "forwarded_allow_ips": ""}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, http=Connection, **settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, "the server's start")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
