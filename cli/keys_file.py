"""The keys file: its form, which serve_app/gateway/keys/record.py has too, and edits that lose nothing."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from cli.errors import KeysFileError
from cli.key_text import digest, new_id, new_key
from cli.private_file import give_to_owner_of, write_private

HEADER = "# Keys of the service, as digests. `vllm-chat keys` edits this file; it does not keep comments.\n"

Tier = Literal["high", "normal", "low"]


def in_utc(moment: datetime) -> datetime:
    """The moment, in UTC where it names no time zone."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


Moment = Annotated[datetime, AfterValidator(in_utc)]
Glob = Annotated[str, Field(min_length=1, max_length=128)]
Feature = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Closed):
    requests_per_minute: PositiveInt | None = Field(default=None, le=10**9)
    tokens_per_minute: PositiveInt | None = Field(default=None, le=10**9)
    concurrent: PositiveInt | None = Field(default=None, le=10**6)
    max_tokens: PositiveInt | None = None
    context: PositiveInt | None = None


class Secret(_Closed):
    digest: str = Field(pattern=r"^(hmac-)?sha256:[0-9a-f]{64}$", repr=False)
    created: Moment
    expires: Moment | None = None


class KeyRecord(_Closed):
    id: str = Field(pattern=r"^[a-z0-9]{8,12}$")
    name: str = Field(min_length=1, max_length=128)
    secrets: tuple[Secret, ...] = Field(min_length=1)
    created: Moment
    expires: Moment | None = None
    revoked: bool | Moment = False
    models: tuple[Glob, ...] = Field(default=("*",), min_length=1)
    endpoints: tuple[Glob, ...] = ()
    features: tuple[Feature, ...] = ()
    limits: Limits = Limits()
    tier: Tier = "normal"
    cache_group: str | None = Field(default=None, min_length=1, max_length=64)

    def live_secrets(self, now: datetime) -> tuple[Secret, ...]:
        """The secrets that open the service at `now`."""
        if self.revoked or (self.expires and self.expires <= now):
            return ()
        return tuple(secret for secret in self.secrets if secret.expires is None or secret.expires > now)


class _KeysFile(_Closed):
    keys: list[KeyRecord]


def read(path: Path) -> list[KeyRecord]:
    """All keys of the file; raises KeysFileError."""
    try:
        document = yaml.safe_load(path.read_bytes())
        if not isinstance(document, dict) or "keys" not in document:
            raise KeysFileError(f"{path} is not a keys file: it has no `keys:`.")
        return _KeysFile.model_validate(document).keys
    except FileNotFoundError:
        advice = "`vllm-chat keys create NAME` makes one; --file or KEYS_FILE says where it is."
        raise KeysFileError(f"There is no keys file {path}.", advice) from None
    except OSError as error:
        raise KeysFileError(f"The keys file {path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        raise KeysFileError(f"{path} is not a keys file: {wrong_fields(error)}.") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):
        raise KeysFileError(f"{path} is not a keys file: it is not valid YAML.") from None


def new_record(rights: Mapping[str, Any], pepper: bytes, now: datetime) -> tuple[str, KeyRecord]:
    """A new key's text and what the file holds of it. Raises ValueError that names each wrong right."""
    key_id = new_id()
    key = new_key(key_id)
    secret = Secret(digest=digest(key, pepper), created=now)
    try:
        return key, KeyRecord.model_validate({**rights, "id": key_id, "secrets": (secret,), "created": now})
    except ValidationError as error:
        raise ValueError(wrong_fields(error)) from None


def rotated(
    record: KeyRecord, pepper: bytes, now: datetime, old_ends: datetime, expires: datetime | None
) -> tuple[str, KeyRecord]:
    """A new text for a key, and the key with the new secret beside those that live on until `old_ends`.

    `expires` replaces the end of the key as a whole. Raises KeysFileError for a key that has ended.
    """
    if record.revoked:
        raise KeysFileError(f"Key {record.id!r} is revoked.", "Make a new one: `vllm-chat keys create NAME`.")
    record = record.model_copy(update={"expires": expires or record.expires})
    if record.expires and record.expires <= now:
        raise KeysFileError(f"Key {record.id!r} has expired.", "Give it a new end: `--expires 90d`.")
    key = new_key(record.id)
    old = [
        secret.model_copy(update={"expires": min(secret.expires or old_ends, old_ends)})
        for secret in record.live_secrets(now)
        if old_ends > now
    ]
    secrets = (Secret(digest=digest(key, pepper), created=now), *old)
    return key, record.model_copy(update={"secrets": secrets})


@contextmanager
def editing(path: Path, create: bool = False) -> Iterator[list[KeyRecord]]:
    """Yield the keys to be changed in place, alone among all editors; at the end the file is replaced in one step.

    With `create`, no file means no keys yet. An error inside leaves the file as it was. Raises KeysFileError.
    """
    target = path.resolve()
    with _locked(target):
        keys = [] if create and not target.exists() else read(path)
        yield keys
        document = {"keys": [key.model_dump(mode="json", exclude_defaults=True) for key in keys]}
        try:
            write_private(target, HEADER + yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise KeysFileError(f"The keys file {path} cannot be written: {error.strerror}.") from None


def wrong_fields(error: ValidationError) -> str:
    """Each wrong field and what is wrong with it, without the values."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}"
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock beside the file, which stays there: removed, it could be held twice."""
    try:
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise KeysFileError(f"The keys file {path} cannot be edited: {error.strerror}.") from None
    try:
        give_to_owner_of(path, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        os.close(descriptor)
        raise KeysFileError(f"The keys file {path} cannot be locked: {error.strerror}.") from None
    try:
        yield
    finally:
        os.close(descriptor)
