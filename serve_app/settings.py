"""What all settings have in common: closed models, a sentence under each field, and one error."""

from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A setting is wrong; the message is one line that names it."""


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def describe_errors(error: ValidationError) -> str:
    """One line that names each wrong field and what is wrong with it, without the values."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'config'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    )
