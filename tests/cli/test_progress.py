"""How the launcher reads the start's progress and its failure."""

import pytest

from cli.launcher.failures import last_words, model_failure
from cli.launcher.progress import STEPS, Health, current_step

RAY = "INFO worker.py:2029 -- Started a local Ray instance. View the dashboard at 127.0.0.1:8265\n"
LOADED = "(EngineCore pid=7) INFO Loading weights took 0.52 seconds\n"
LOADING = Health(ready=False, models=[{"id": "a", "status": "loading"}])
HALF = Health(ready=True, models=[{"id": "a", "status": "ready"}, {"id": "b", "status": "loading"}])
READY = Health(ready=True, models=[{"id": "a", "status": "ready"}])


@pytest.mark.parametrize(
    ("log", "health", "step"),
    [
        ("", None, "Ray"),
        (RAY, None, "gateway"),
        (RAY, LOADING, "weights"),
        (RAY + LOADED, LOADING, "warm-up"),
        (RAY + LOADED, HALF, "warm-up"),
    ],
)
def test_the_step_that_is_waited_for(log: str, health: Health | None, step: str) -> None:
    assert STEPS[current_step(log, health)] == step


def test_a_service_whose_models_all_answer_waits_for_nothing() -> None:
    assert current_step(RAY, READY) == len(STEPS)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            "x\nray.exceptions.RaySystemError: System error: no disk\ngoodbye\n",
            "RaySystemError: System error: no disk",
        ),
        ("\x1b[36m(pid=7)\x1b[0m ValueError: bad key\n", "ValueError: bad key"),
        ("first\nKilled\n\n", "Killed"),
        ("", "it wrote nothing"),
    ],
)
def test_the_last_words_of_a_log(log: str, line: str) -> None:
    assert last_words(log) == line


def test_a_failure_that_no_log_explains() -> None:
    assert model_failure("demo", "", "") == "its replicas do not start"


def test_a_models_failure_is_found_under_the_name_of_its_deployment() -> None:
    controller_log = "Exception in Replica(id='a', deployment='replica-acme-Chat-1.5', app='chat')\nOSError: no file\n"
    assert model_failure("acme/Chat_1.5", "", controller_log) == "OSError: no file"
