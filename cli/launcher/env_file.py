"""The `.env` file: where the service's key lives, and settings that the shell's environment overrides."""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from cli.private_file import write_private

KEY = "PROXY_API_KEY"


def ensure_key(path: Path) -> bool:
    """Gives the file at `path` a random key if it has none; its other lines stay. Whether one was written.

    The file is replaced in one step and readable by its owner alone.
    """
    target = path.resolve()
    text = target.read_text() if target.exists() else ""
    if read(path).get(KEY):
        target.chmod(0o600)
        return False
    line = f"{KEY}=sk-{secrets.token_urlsafe(32)}\n"
    blank = re.compile(rf"^(export\s+)?{KEY}\s*=.*\n?", re.MULTILINE)
    kept = blank.sub("", text)
    if kept and not kept.endswith("\n"):
        kept += "\n"
    write_private(target, kept + line)
    return True


def read(path: Path) -> dict[str, str]:
    """The variables that the file gives a value."""
    return {name: value for name, value in dotenv_values(path).items() if value}


def in_shell(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The shell's variables, which win over the file's. An empty key is none: it would open the service to all."""
    return {name: value for name, value in environment.items() if name != KEY or value.strip()}
