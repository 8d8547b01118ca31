"""`python -m serve_app.check`: judge a Serve config and its models before anything starts."""

import argparse
import sys
from pathlib import Path

import yaml
from pydantic import ValidationError

from serve_app.config import ServiceConfig, check_source
from serve_app.gateway.config import check_gateway
from serve_app.settings import ConfigError, describe_errors

IMPORT_PATH = "serve_app.app:build"


def check(path: Path) -> None:
    """Raise ConfigError with one line if the service in this Serve config file could not start."""
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML") from error
    applications = document.get("applications", []) if isinstance(document, dict) else []
    ours = [app for app in applications if app.get("import_path") == IMPORT_PATH]
    if not ours:
        raise ConfigError(f"{path}: no application imports {IMPORT_PATH}")
    for application in ours:
        try:
            service = ServiceConfig.model_validate(application.get("args") or {})
        except ValidationError as error:
            raise ConfigError(f"{path}: args: {describe_errors(error)}") from error
        check_gateway(service.gateway)
        for model in service.resolve():
            check_source(model)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serve_app.check", description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=Path("serve_config.yaml"))
    try:
        check(parser.parse_args().config)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
