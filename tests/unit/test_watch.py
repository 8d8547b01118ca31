"""The watch over what Serve says of the fleet."""

from types import SimpleNamespace

import pytest

from serve_app import ray_seam
from serve_app.fleet import watch
from serve_app.fleet.watch import FleetWatch
from serve_app.ray_seam import Deployed, Replicas


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> FleetWatch:
    monkeypatch.setattr(watch.serve, "get_replica_context", lambda: SimpleNamespace(app_name="chat"))
    monkeypatch.setattr(watch.ray, "cluster_resources", dict)
    return FleetWatch()


def test_a_deployment_is_up_since_it_last_had_no_replica(seen: FleetWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    ups = []
    for now, running in enumerate([0, 1, 2, 0, 1]):
        monkeypatch.setattr("time.monotonic", lambda now=now: float(now))
        deployed = Deployed({"replica-m": Replicas(running=running)})
        monkeypatch.setattr(ray_seam, "deployed", lambda _, deployed=deployed: deployed)
        seen._poll()
        ups.append(seen["replica-m"].since if running else None)
    assert ups == [None, 1, 1, None, 4]


def test_while_the_application_is_built_anew_and_where_that_fails_replicas_come_and_go(
    seen: FleetWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Replicas(running=2, target=2, ids=frozenset({"a", "b"}), settings={"id": "m"})
    monkeypatch.setattr(ray_seam, "deployed", lambda _: Deployed({"replica-m": before}, {"aliases": {}}))
    seen._poll()
    monkeypatch.setattr(ray_seam, "deployed", lambda _: None)
    for alive in ({"b"}, set(), {"c", "d"}):
        monkeypatch.setattr(ray_seam, "running", lambda _, alive=alive: {"replica-m": frozenset(alive)})
        seen._poll()
        replicas = seen["replica-m"]
        assert (replicas.running, replicas.ids) == (len(alive), alive)
    assert replicas.target == 2
    assert seen.deployed == Deployed({"replica-m": before}, {"aliases": {}})


def test_a_gateway_that_starts_while_the_config_is_wrong_finds_the_replicas(
    seen: FleetWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_seam, "deployed", lambda _: None)
    monkeypatch.setattr(ray_seam, "running", lambda _: {"replica-m": frozenset({"a", "b"})})
    seen._poll()
    assert (seen["replica-m"].running, seen["replica-m"].ids) == (2, {"a", "b"})
    assert seen.deployed is None
