"""Why a start has failed, read from the service's log and from that of Serve's controller."""

import re

BUILD_FAILED = "Exception importing application"
REPLICA_FAILED = re.compile(r"Exception in Replica\(id='[^']*', deployment='([^']*)'")
REPLICA_TRIES = 3
"""So often does Serve start a replica before it gives a deployment up."""
MODEL = "replica-"
"""The names of the deployments of models begin so."""
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
REPEATED = re.compile(r" \[repeated \d+x across cluster\].*")
"""What Ray adds to a line that several processes wrote."""
ERROR_LINE = re.compile(r"(?:^|[\s.])((?:[A-Z]\w*(?:Error|Exception)): .+)")
NO_CAUSE = ("Engine core initialization failed", "Traceback (most recent call last)")
"""An error with these words only says that there is another, further down or in another process."""


def deploy_failure(log: str, controller_log: str) -> str | None:
    """Why Serve gave the gateway up, which it says in its own log only and does not end for."""
    if BUILD_FAILED in controller_log:
        return find_error(log)  # the builder's error arrives a little later than the controller's word
    failures = [text for name, text in replica_failures(controller_log) if not name.startswith(MODEL)]
    return find_error(failures[-1]) if len(failures) >= REPLICA_TRIES else None


def model_failure(model: str, log: str, controller_log: str) -> str:
    """Why the replicas of a model do not start. Serve's log has their error, the service's that of an engine core."""
    deployment = deployment_of(model)
    failures = [text for name, text in replica_failures(controller_log) if name == deployment]
    written = [line for line in log.splitlines() if f":{deployment} pid=" in line]
    causes = (find_error(text) for text in (*failures[-1:], "\n".join(written)))
    return next((cause for cause in causes if cause), "its replicas do not start")


def deployment_of(model: str) -> str:
    """The name that a model's replicas have in Serve; serve_app/app.py gives it."""
    return MODEL + re.sub(r"[^A-Za-z0-9.-]+", "-", model)


def replica_failures(controller_log: str) -> list[tuple[str, str]]:
    """Every failed start of a replica: its deployment, and what Serve wrote from there to the next."""
    _, *parts = REPLICA_FAILED.split(controller_log)
    return list(zip(parts[::2], parts[1::2], strict=True))


def find_error(log: str) -> str | None:
    """The last line of a log that names an error and its cause, from that name on."""
    for line in reversed(log.splitlines()):
        plain = REPEATED.sub("", ANSI.sub("", line)).strip()
        if (found := ERROR_LINE.search(plain)) and not any(words in plain for words in NO_CAUSE):
            return found[1]
    return None


def last_words(log: str) -> str:
    """The last error of a log, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return find_error(log) or (ANSI.sub("", lines[-1]) if lines else "it wrote nothing")
