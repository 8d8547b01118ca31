"""What all settings have in common: closed models, a sentence under each field, one error, and secrets from files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

LONGEST_ID = 128

ModelId = Annotated[str, Field(min_length=1, max_length=LONGEST_ID, pattern=r"^[\w./:-]+$")]
"""What clients may send as `model`."""


class ConfigError(ValueError):
    """A setting is wrong; the message is one line that names it."""


class Closed(BaseModel):
    # Serve shows what validation says of `args:` as it is, and a value may be a secret.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)


def describe_errors(error: ValidationError) -> str:
    """One line that names each wrong field and what is wrong with it, without the values."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'config'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    )


def secret_variable(environment: Mapping[str, str], name: str) -> tuple[str, str] | None:
    """A variable that is given as `name`, or as `name_FILE`, the path of a file that holds it.

    Returns:
        The text, and which of the two it comes from; None: it is not given.

    Raises:
        ConfigError: both are set, or the file cannot be read.
    """
    given, file = environment.get(name, "").strip(), environment.get(f"{name}_FILE", "").strip()
    if given and file:
        raise ConfigError(f"{name} and {name}_FILE are both set: choose one")
    if not file:
        return (given, name) if given else None
    try:
        return Path(file).read_text().strip(), f"{name}_FILE"
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"{name}_FILE cannot be read: {reason}") from None
