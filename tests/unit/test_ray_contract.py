"""The private names of Ray Serve that the service stands on; a changed pin must fail here first."""

import inspect
from importlib.metadata import version

from ray.serve._private import constants
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.http_util import RequestIdMiddleware, configure_http_middlewares
from ray.serve.schema import ApplicationDetails, DeploymentDetails, ReplicaDetails

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
    assert {"replicas", "status"} <= set(DeploymentDetails.model_fields)
    assert "state" in ReplicaDetails.model_fields


def test_serve_takes_our_edge_and_answers_with_its_request_id() -> None:
    assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" in inspect.getsource(configure_http_middlewares)
    assert constants.SERVE_HTTP_REQUEST_ID_HEADER.encode() == REQUEST_ID
    assert "X-Request-ID" in inspect.getsource(RequestIdMiddleware)
