"""The private names of Ray Serve that the service stands on; a changed pin must fail here first."""

import inspect
from importlib.metadata import version

from ray.serve._private.client import ServeControllerClient
from ray.serve.schema import ApplicationDetails, DeploymentDetails, ReplicaDetails

from serve_app import ray_seam


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
