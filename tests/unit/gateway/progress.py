"""The progress of a request as a test says it is."""

from dataclasses import dataclass


@dataclass
class Progress:
    dispatched: float | None = None
    token: float | None = None
    begun: bool = True
    model: str = "m"
    loading: bool = False
    deadline: float | None = None
