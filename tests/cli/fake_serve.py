"""Stands in for `serve run CONFIG`: answers as the service does, and leaves a stubborn orphan as engines may.

The config's `fake` entry picks the behaviour: ready, exit, deaf (ignores the polite request to end), unbuildable and
crashing (Serve's controller gives the application up, which only its own log shows), misconfigured and engineless (a
model's replicas do not start; Serve's log has why, or says that an engine core's output in the service's log has it).
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

FAILURE = """ERROR controller 7 -- Exception in Replica(id='a', deployment='{0}', app='chat'), the replica will be stopped.
RuntimeError: Traceback (most recent call last):
{1}
INFO controller 7 -- Stopping Replica(id='a', deployment='{0}', app='chat') (currently ReplicaState.STARTING).
"""  # noqa: E501 - as Serve's controller writes it
NO_ENGINE = "RuntimeError: Engine core initialization failed. See root cause above."


def failure(deployment: str, error: str) -> str:
    """What Serve's controller writes when the start of a replica fails."""
    return FAILURE.format(deployment, error)


OTHER = failure("replica-other", "ValueError: not the one that is asked for")
CONTROLLER_LOGS = {
    "unbuildable": "WARNING controller build_chat_7 -- Exception importing application 'chat'.\n",
    "crashing": failure("gateway", "ValueError: no port") * 3,
    "misconfigured": failure("replica-demo", "serve_app.settings.ConfigError: model demo: too long") * 3 + OTHER,
    "engineless": failure("replica-demo", NO_ENGINE) * 3,
}
RAY_LINE = "\x1b[36m(ServeReplica:chat:{} pid=8)\x1b[0m {}\n"
ENGINE_LOG = (
    RAY_LINE.format(
        "replica-demo", "(EngineCore pid=9) ValueError: no room\x1b[32m [repeated 2x across cluster]\x1b[0m"
    )
    + RAY_LINE.format("replica-demo", NO_ENGINE)
    + RAY_LINE.format("replica-other", "ValueError: not the one that is asked for")
)


def leave_orphan() -> None:
    """A grandchild in a session of its own that ignores every polite signal and has lost its parent."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Path("orphan.pid").write_text(str(os.getpid()))
    time.sleep(600)
    os._exit(0)


class Handler(BaseHTTPRequestHandler):
    """GET /api/healthz and POST /v1/chat/completions with the key of PROXY_API_KEY."""

    behaviour = "ready"

    def do_GET(self) -> None:
        failed = self.behaviour in {"misconfigured", "engineless"}
        model = {
            "id": "demo",
            "status": "failed" if failed else "ready",
            "replicas": {"running": int(not failed), "target": 1},
            "tasks": ["generate"],
            "max_model_len": 512,
            "error": "The replicas of this model do not start; their log tells why." if failed else None,
        }
        self.answer(503 if failed else 200, {"status": "ok", "details": {"models": [model]}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.headers["Authorization"] == f"Bearer {os.environ['PROXY_API_KEY']}"
        self.answer(200 if known else 401, {"known": known, "model": body["model"]})

    def answer(self, code: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        return


def main() -> None:
    config = yaml.safe_load(Path(sys.argv[1]).read_text())
    Handler.behaviour = config["fake"]
    Path("environment.json").write_text(json.dumps(dict(os.environ)))
    leave_orphan()
    if Handler.behaviour == "exit":
        raise RuntimeError("the cluster could not be formed")
    if Handler.behaviour == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if Handler.behaviour in CONTROLLER_LOGS:
        logs = Path(os.environ["RAY_TMPDIR"], "ray", "session_latest", "logs", "serve")
        logs.mkdir(parents=True)
        (logs / "controller_7.log").write_text(CONTROLLER_LOGS[Handler.behaviour])
    if Handler.behaviour == "engineless":
        sys.stderr.write(ENGINE_LOG)
    if Handler.behaviour in {"unbuildable", "crashing"}:
        sys.stderr.write("Traceback:\nValueError: no models in args\nSystem error:\nIntentionalSystemExit: bye\n")
        time.sleep(600)
    ThreadingHTTPServer(("127.0.0.1", config["http_options"]["port"]), Handler).serve_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
