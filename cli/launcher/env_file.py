"""The `.env` file: where the service's key lives, and settings that the shell's environment overrides."""

import re
import secrets
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
