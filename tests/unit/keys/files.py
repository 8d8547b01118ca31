"""Keys files as an operator or Kubernetes writes them."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import yaml

from serve_app.gateway.errors import Headers
from serve_app.gateway.keys.keyring import Keyring, KeysConfig

CREATED = "2026-01-01T00:00:00Z"


def bearer(key: str) -> Headers:
    return [(b"host", b"h"), (b"authorization", b"Bearer " + key.encode())]


def digest(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def record(key_id: str, key: str, **fields: Any) -> dict[str, Any]:
    """A key of the file, with one secret that never ends unless `fields` say otherwise."""
    secrets = [{"digest": digest(key), "created": CREATED}]
    return {"id": key_id, "name": f"name of {key_id}", "secrets": secrets, "created": CREATED, **fields}


def write(path: Path, *records: dict[str, Any]) -> Path:
    """Replaces the file by one with these keys."""
    return write_text(path, yaml.safe_dump({"keys": list(records)}))


def write_text(path: Path, text: str) -> Path:
    """Replaces the file in one step, as a careful editor does."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    return draft.replace(path)


def keyring(path: Path, **environment: str) -> Keyring:
    return Keyring(KeysConfig(path=str(path), poll_s=0.01), environment)


class SecretVolume:
    """A Kubernetes Secret mounted as a directory: files are links through `..data`, which a change swaps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = 0
        path.mkdir()

    def put(self, **files: str) -> None:
        """What the kubelet does when the Secret holds these files from now on."""
        data, old = self.path / "..data", self.path / f"..version_{self._version}"
        self._version += 1
        new = self.path / f"..version_{self._version}"
        new.mkdir()
        for name, text in files.items():
            (new / name).write_text(text)
        link = self.path / "..data_tmp"
        link.symlink_to(new.name)
        link.replace(data)
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(Path("..data") / name)
        for entry in self.path.iterdir():
            if not entry.name.startswith("..") and entry.name not in files:
                entry.unlink()
        shutil.rmtree(old, ignore_errors=True)
