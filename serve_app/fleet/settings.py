"""Settings of what becomes of requests whose replica is lost."""

from pydantic import Field

from serve_app.settings import Closed


class FailoverConfig(Closed):
    """Moves from one replica to another."""

    max_moves: int = Field(default=2, ge=0)
    """How often a request moves because its replica was lost; after that it ends with an error."""
    tokens_per_s: int = Field(default=16384, ge=0)
    """Tokens of prompts and answers a second that moved requests may have each replica that is left compute again;
    the others wait. 0: no bound."""
    refuse_s: float = Field(default=600, gt=0)
    """Seconds for which a request is refused that has killed two replicas."""
