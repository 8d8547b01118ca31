"""`python -m serve_app.check`: judge a Serve config and its models before anything starts."""

import argparse
import sys
from pathlib import Path

import yaml
from pydantic import ValidationError

from serve_app.config import ModelConfig, ServiceConfig, check_source
from serve_app.gateway.config import check_gateway
from serve_app.settings import ConfigError, describe_errors

IMPORT_PATH = "serve_app.app:build"


def check(path: Path, gpus: int | None = None) -> None:
    """Raise ConfigError with one line if the service in this Serve config file could not start.

    `gpus` are those of the single machine that it is for; None: of a cluster that this machine does not know.
    """
    for service in read_services(path):
        check_gateway(service.gateway)
        models = service.resolve()
        for model in models:
            check_source(model)
        if gpus is not None:
            _check_gpus(models, gpus)


def read_services(path: Path) -> list[ServiceConfig]:
    """The settings of each application of ours in a Serve config file, at least one.

    Raises:
        ConfigError: the file cannot be read, or its settings are wrong; one line.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML") from error
    applications = document.get("applications") if isinstance(document, dict) else None
    listed = applications if isinstance(applications, list) else []
    ours = [app for app in listed if isinstance(app, dict) and app.get("import_path") == IMPORT_PATH]
    if not ours:
        raise ConfigError(f"{path}: no application imports {IMPORT_PATH}")
    try:
        return [ServiceConfig.model_validate(application.get("args") or {}) for application in ours]
    except ValidationError as error:
        raise ConfigError(f"{path}: args: {describe_errors(error)}") from error


def _check_gpus(models: list[ModelConfig], gpus: int) -> None:
    """Ray has a replica wait, for ever and without a word, for GPUs that are not there."""
    needs = {
        model.id: model.replicas.least_running * model.reserved_gpus() for model in models if model.reserved_gpus()
    }
    if sum(needs.values()) <= gpus:
        return
    wanted = ", ".join(f"{name} {need:g}" for name, need in needs.items())
    advice = "choose another model or a smaller TP_SIZE" if gpus else "choose another model, or one with `device: cpu`"
    raise ConfigError(f"models need more GPUs ({wanted}) than this machine has ({gpus}): {advice}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serve_app.check", description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=Path("serve_config.yaml"))
    parser.add_argument(
        "--gpus", type=int, help="GPUs of the single machine that it is for; without it, of any cluster"
    )
    args = parser.parse_args()
    try:
        check(args.config, args.gpus)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
