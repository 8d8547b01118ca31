"""The private names of Ray Serve that the service stands on; a changed pin must fail here first."""

import inspect
import logging
from collections.abc import Iterator
from importlib.metadata import version
from logging.config import dictConfig
from logging.handlers import MemoryHandler
from pathlib import Path
from types import SimpleNamespace

import grpc
import psutil
import pytest
import ray
from ray import serve
from ray._private import worker
from ray.serve._private import constants, controller, proxy, replica
from ray.serve._private.build_app import build_app
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.common import DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.deploy_utils import deploy_args_to_deployment_info, get_deploy_args
from ray.serve._private.http_util import RequestIdMiddleware, configure_http_middlewares
from ray.serve._private.logging_utils import (
    access_log_msg,
    configure_component_logger,
    get_component_logger_file_path,
)
from ray.serve._private.request_router import replica_wrapper
from ray.serve.schema import ApplicationDetails, DeploymentDetails, DeploymentSchema, LoggingConfig, ReplicaDetails

from serve_app import ray_seam
from serve_app.gateway.edge import REQUEST_ID


def test_the_version_is_the_pinned_one() -> None:
    assert version("ray") == "2.60.0"


def test_the_client_has_what_we_read() -> None:
    assert callable(ray_seam._get_global_client)
    assert ray_seam.behind_haproxy() is False
    assert isinstance(ServeControllerClient.http_config, property)
    assert list(inspect.signature(ServeControllerClient.get_serve_details).parameters) == ["self"]


def test_the_details_have_the_fields_we_read() -> None:
    assert "deployments" in ApplicationDetails.model_fields
    assert {"replicas", "status", "status_trigger"} <= set(DeploymentDetails.model_fields)
    assert {"state", "replica_id"} <= set(ReplicaDetails.model_fields)


def test_serve_binds_its_server_after_the_constructor_and_tells_callers_the_nodes_address() -> None:
    bind = 'self._internal_grpc_port = add_port_to_grpc_server(self._server, "[::]:0")'
    assert bind in inspect.getsource(replica.Replica._on_initialized)
    assert inspect.getsource(replica).count("add_port_to_grpc_server(") == 1
    initialize = inspect.getsource(replica.Replica.initialize)
    assert 0 < initialize.index("initialize_callable()") < initialize.index("_on_initialized()")
    assert "ray.util.get_node_ip_address()" in inspect.getsource(replica)
    assert 'f"{self._replica_info.node_ip}:{self._replica_info.port}"' in inspect.getsource(replica_wrapper)


@pytest.fixture
def serve_log(tmp_path: Path) -> Iterator[logging.Logger]:
    """Serve's logger as a replica has it on the fast path, which writes to the only file of `tmp_path`."""
    logger = logging.getLogger(constants.SERVE_LOGGER_NAME)
    before, logger.handlers = logger.handlers, []
    settings = LoggingConfig(logs_dir=str(tmp_path))
    configure_component_logger(
        component_name="m", component_id="1", logging_config=settings, max_bytes=0, backup_count=0, buffer_size=1000
    )
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers = before


def test_serves_log_goes_on_after_vllm_has_configured_logging(serve_log: logging.Logger, tmp_path: Path) -> None:
    ray_seam.keep_log()
    for message in ("one", "two"):
        serve_log.info(message)
        (file,) = tmp_path.iterdir()
        assert file.read_text().rstrip().endswith(f" -- {message}")
        dictConfig({"version": 1, "disable_existing_loggers": False})
    (handler,) = (each for each in serve_log.handlers if isinstance(each, MemoryHandler))
    assert isinstance(handler.target, logging.FileHandler)  # which Serve asks for its file
    assert "handler.target.baseFilename" in inspect.getsource(get_component_logger_file_path)


@pytest.mark.parametrize("node", ["127.0.0.1", "::1"])
async def test_serves_server_listens_on_the_nodes_address_alone(monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    before = listening()
    monkeypatch.setattr(replica, "add_port_to_grpc_server", replica.add_port_to_grpc_server)  # put back afterwards
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
    ray_seam.listen_on_node_address()
    ray_seam.listen_on_node_address()
    server = grpc.aio.server()
    port = replica.add_port_to_grpc_server(server, "[::]:0")
    await server.start()
    assert listening() - before == {(node, port)}
    await server.stop(None)


def listening() -> set[tuple[str, int]]:
    sockets = [each for each in psutil.Process().net_connections("inet") if each.status == psutil.CONN_LISTEN]
    return {(each.laddr.ip.removeprefix("::ffff:"), each.laddr.port) for each in sockets}


def test_serves_access_log_is_told_of_no_query() -> None:
    assert list(inspect.signature(access_log_msg).parameters) == ["method", "route", "status", "latency_ms", "client"]
    for source in (proxy.GenericProxy.proxy_request, replica.Replica._determine_http_route):
        assert "query" not in inspect.getsource(source)


def test_serve_takes_our_edge_and_answers_with_its_request_id() -> None:
    assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" in inspect.getsource(configure_http_middlewares)
    assert constants.SERVE_HTTP_REQUEST_ID_HEADER.encode() == REQUEST_ID
    assert "X-Request-ID" in inspect.getsource(RequestIdMiddleware)


async def test_serve_waits_for_requests_and_refuses_new_ones_where_we_hook_in(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = inspect.getsource(replica.Replica._perform_graceful_shutdown)
    assert "await self._drain_ongoing_requests(" in stop
    assert "self._is_replica_quiescing(" in inspect.getsource(replica.Replica.handle_request_with_rejection)
    for name in ("_drain_ongoing_requests", "_is_replica_quiescing"):
        monkeypatch.setattr(replica.Replica, name, getattr(replica.Replica, name))  # put back afterwards
    begun: list[str] = []
    ray_seam.on_stop(lambda: begun.append("stop"), lambda: bool(begun))
    stopping = Stopping()
    metadata = RequestMetadata("request", "internal")
    assert replica.Replica._is_replica_quiescing(stopping, metadata) is False  # type: ignore[arg-type]
    await replica.Replica._drain_ongoing_requests(stopping)  # type: ignore[arg-type]
    assert begun == ["stop"]
    assert replica.Replica._is_replica_quiescing(stopping, metadata) is True  # type: ignore[arg-type]


class Stopping:
    """What Serve's own two methods read of a replica."""

    _quiescing = False

    class _deployment_config:  # noqa: N801 - Serve's name
        graceful_shutdown_wait_loop_s = 0

    def get_num_ongoing_requests(self) -> int:
        return 0


def test_ray_ends_a_worker_at_sigterm_by_a_call_that_we_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "raise_sys_exit_with_custom_error_message"
    source = inspect.getsource(worker.Worker.main_loop)
    assert source.index("def sigterm_handler") < source.index(f"{name}(") < source.index("set_sigterm_handler(")
    monkeypatch.setattr(worker, name, getattr(worker, name))  # put back afterwards
    called: list[str] = []
    ray_seam.on_sigterm(lambda: called.append("SIGTERM"))
    worker.raise_sys_exit_with_custom_error_message("The process receives a SIGTERM.", exit_code=1)
    assert called == ["SIGTERM"]


def test_the_controller_tells_the_running_replicas_of_an_application_that_is_not_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert callable(controller.ServeController._all_running_replicas)
    found = {
        DeploymentID("replica-m", application): [SimpleNamespace(replica_id=ReplicaID(name, DeploymentID("replica-m")))]
        for application, name in (("chat", "a"), ("other", "b"))
    }
    asked = SimpleNamespace(_all_running_replicas=SimpleNamespace(remote=lambda: found))
    monkeypatch.setattr(ray_seam, "_get_global_client", lambda: SimpleNamespace(_controller=asked))
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    assert ray_seam.running("chat") == {"replica-m": {"a"}}


def test_the_details_tell_what_the_gateway_follows() -> None:
    assert "deployed_app_config" in ApplicationDetails.model_fields
    assert {"target_num_replicas", "deployment_config"} <= set(DeploymentDetails.model_fields)
    assert "user_config" in DeploymentSchema.model_fields


def test_a_deployment_keeps_its_own_version_when_serve_builds_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01000000"))

    class Any:
        pass

    options = {
        "name": "a",
        "max_ongoing_requests": 7,
        "user_config": {"b": 1},
        "autoscaling_config": {"max_replicas": 3},
    }
    app = ray_seam.with_version(serve.deployment(**options)(Any), "mine").bind()
    (built,) = build_app(app, name="chat").deployments
    # As in ray.serve._private.application_state.build_serve_application
    args = get_deploy_args(
        name=built._name,
        replica_config=built._replica_config,
        deployment_config=built._deployment_config,
        version="digest of all arguments",
    )
    info = deploy_args_to_deployment_info(**args, app_name="chat")
    assert info.version == "mine"
    config = info.deployment_config
    assert (config.max_ongoing_requests, config.user_config, config.autoscaling_config.max_replicas) == (7, {"b": 1}, 3)
