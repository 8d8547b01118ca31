"""The systems that `compare` measures, each as the command that serves one model directory."""

import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cli.launcher.service import SERVE
from loadtests.target import Target

MODEL = "compared"
HOST = "127.0.0.1"
ENGINE_ARGS = {"max_model_len": 2048, "dtype": "float32", "enforce_eager": True}
ENGINE_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# What our service reads; empty is unset, so that the shell changes nothing of what is measured.
UNSET = dict.fromkeys(
    (
        "CORS_ORIGINS",
        "DEFAULT_MODEL",
        "FORWARDED_ALLOW_IPS",
        "KEYS_FILE",
        "KEY_PEPPER_FILE",
        "LIMITS_REDIS_URL",
        "MAX_MODEL_LEN",
        "RATE_LIMIT_PER_MINUTE",
        "TP_SIZE",
        "USAGE_DATABASE_URL",
        "USAGE_DATABASE_URL_FILE",
    ),
    "",
)
FAST_PATH = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
SERVE_RUN = [sys.executable, "-m", "ray.serve.scripts", "run"]


@dataclass(frozen=True, slots=True)
class System:
    """A command that serves, what it adds to the environment, and the API it then has."""

    command: list[str]
    environment: dict[str, str]
    target: Target
    ports: tuple[int, ...]


def bare(model_dir: Path, folder: Path, port: int) -> System:
    """vLLM's own server, one process, no key."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in ENGINE_ARGS.items() if value is not True]
    flags += [f"--{name.replace('_', '-')}" for name, value in ENGINE_ARGS.items() if value is True]
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    where = [f"--model={model_dir}", f"--served-model-name={MODEL}", f"--host={HOST}", f"--port={port}"]
    return System([*server, *where, *flags], ENGINE_ENV, target(port), (port,))


def ours(model_dir: Path, folder: Path, port: int) -> System:
    """This project, serving the model as the others do."""
    return service({"id": MODEL, "source": str(model_dir), "device": "cpu", "vllm_args": ENGINE_ARGS}, folder, port)


def service(model: dict[str, Any], folder: Path, port: int) -> System:
    """This project by `serve run`, as `make run` starts it: the Serve fast path, key check and usage ledger on.

    `model`: the settings of a model file.
    """
    model_file = folder / "model.yaml"
    model_file.write_text(yaml.safe_dump(model))
    application = {
        "name": "chat",
        "route_prefix": "/",
        "import_path": "serve_app.app:build",
        "args": {"models": [str(model_file)], "gateway": {"replicas": 1}},
    }
    key = secrets.token_urlsafe(32)
    own = {**UNSET, "PROXY_API_KEY": key, "XDG_STATE_HOME": str(folder)}
    return on_serve(application, folder, port, {**SERVE, **own}, target(port, key, model["id"]))


def ray_serve_llm(model_dir: Path, folder: Path, port: int) -> System:
    """ray.serve.llm as it comes, no key."""
    return on_serve(openai_app(model_dir), folder, port, {}, target(port))


def ray_serve_llm_fast(model_dir: Path, folder: Path, port: int) -> System:
    """ray.serve.llm with the Serve fast path, no key."""
    return on_serve(openai_app(model_dir), folder, port, FAST_PATH, target(port))


def openai_app(model_dir: Path) -> dict[str, Any]:
    """The ray.serve.llm application. Its ingress reserves no CPU: the engine's bundle takes two."""
    model = {
        "model_loading_config": {"model_id": MODEL, "model_source": str(model_dir)},
        "accelerator_config": {"kind": "cpu"},
        "engine_kwargs": ENGINE_ARGS,
    }
    ingress = {"ray_actor_options": {"num_cpus": 0}}
    return {
        "name": "llm",
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [model], "ingress_deployment_config": ingress},
    }


def on_serve(application: dict[str, Any], folder: Path, port: int, environment: dict[str, str], api: Target) -> System:
    """An application on a Ray of its own, whose files and ports keep clear of any other Ray here."""
    config = folder / "serve.yaml"
    options = {"host": HOST, "port": port}
    config.write_text(yaml.safe_dump({"http_options": options, "applications": [application]}))
    metrics, stats, fallback = port + 100, port + 200, port + 300
    apart = {
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
    }
    settings = {**ENGINE_ENV, **apart, **environment}
    return System([*SERVE_RUN, str(config)], settings, api, (port, metrics, stats, fallback))


def target(port: int, key: str | None = None, model: str = MODEL) -> Target:
    """The API of a system on `port`."""
    return Target(f"http://{HOST}:{port}/v1", model, key)


@dataclass(frozen=True, slots=True)
class Entry:
    """A system's name in reports, and how to make it for a model directory, a folder and a port."""

    label: str
    make: Callable[[Path, Path, int], System]


SYSTEMS = {
    "bare": Entry("bare vLLM", bare),
    "ours": Entry("vllm-chat-backend", ours),
    "rayllm": Entry("ray.serve.llm", ray_serve_llm),
    "rayllm-fast": Entry("ray.serve.llm, fast path", ray_serve_llm_fast),
}
