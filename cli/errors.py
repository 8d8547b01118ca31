"""What can go wrong between the terminal and the service, each kind named for what the user can do about it.

ClientError
├── SettingsError           an environment variable cannot be used
├── KeysFileError           the keys file, or a key in it, cannot be used as asked
└── ServiceError            the service did not do what was asked
    ├── UnreachableError    nothing answers at the address
    ├── KeyRefusedError     no key, or not the right one (401, 403)
    ├── ModelUnknownError   the service has no model of that name (404)
    └── BusyError           loading, full or over a limit: worth another try later (429, 503)
"""

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """Exit codes of every command; scripts may rely on them."""

    OK = 0
    SERVICE = 1
    USAGE = 2
    INTERRUPTED = 130


class ClientError(Exception):
    """`what` happened and what to do about it (`advice`), one line each, ready for the terminal."""

    exit_code = ExitCode.SERVICE

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice


class SettingsError(ClientError):
    """An environment variable cannot be used."""

    exit_code = ExitCode.USAGE


class KeysFileError(ClientError):
    """The keys file, or a key in it, cannot be used as asked."""


class ServiceError(ClientError):
    """The service did not do what was asked."""


class UnreachableError(ServiceError):
    """Nothing answers at the address."""


class KeyRefusedError(ServiceError):
    """The key is missing or wrong."""


class ModelUnknownError(ServiceError):
    """The service has no model of that name."""

    @classmethod
    def among(cls, name: str, served: list[str]) -> Self:
        """Return the error that names the models there are."""
        there_are = ", ".join(served) or "none"
        return cls(f"The service has no model {name!r}.", f"Models it has: {there_are}.")


class BusyError(ServiceError):
    """The service asks to come back in `retry_after` seconds; `loading` when it is not up yet."""

    def __init__(self, what: str, advice: str, retry_after: float, loading: bool) -> None:
        super().__init__(what, advice)
        self.retry_after = retry_after
        self.loading = loading
