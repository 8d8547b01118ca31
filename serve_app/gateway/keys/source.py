"""Where keys are read from: one YAML file, or a directory of them such as a mounted Kubernetes Secret."""

import os
from pathlib import Path

import yaml
from pydantic import ValidationError

from serve_app.gateway.keys.record import KeyRecord
from serve_app.settings import Closed, ConfigError, describe_errors

# Per file: its real path and what changes when it is written. Kubernetes swaps the `..data` symlink under the paths.
Stamp = tuple[tuple[str, int, int, int, int], ...]


class _KeysFile(Closed):
    keys: list[KeyRecord]


class Source:
    """A keys file or a directory of keys files; names that begin with a dot are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def stamp(self) -> Stamp | None:
        """What tells two states of the source apart; None when it cannot be looked at."""
        try:
            return tuple(_stamp(file) for file in self._files())
        except OSError:
            return None

    def read(self) -> list[KeyRecord]:
        """All keys.

        Raises:
            ConfigError: a file cannot be read or is not a keys file. The message quotes nothing of its content.
        """
        try:
            return [record for file in self._files() for record in _read(file)]
        except OSError as error:
            raise ConfigError(f"keys {error.filename or self.path}: {error.strerror}") from None

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        return sorted(file for file in self.path.iterdir() if not file.name.startswith(".") and file.is_file())


def _stamp(file: Path) -> tuple[str, int, int, int, int]:
    status = file.stat()
    return os.path.realpath(file), status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _read(file: Path) -> list[KeyRecord]:
    try:
        document = yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"keys file {file}: not valid YAML{where}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"keys file {file}: it must hold `keys:`, a list, or one key")
    try:
        return _KeysFile.model_validate(document if "keys" in document else {"keys": [document]}).keys
    except ValidationError as error:
        raise ConfigError(f"keys file {file}: {describe_errors(error)}") from None
