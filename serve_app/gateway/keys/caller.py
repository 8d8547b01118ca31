"""Who sent a request, and what it may do."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Self

from serve_app.gateway.errors import InsufficientScope
from serve_app.gateway.keys.record import KeyRecord, Limits, Tier


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key."""

    id: str
    """The key's id, `admin` for PROXY_API_KEY, `anonymous` for a service without keys."""
    name: str
    models: tuple[str, ...] = ("*",)
    """Globs over model ids."""
    endpoints: tuple[str, ...] = ()
    """Globs over routes; empty: all."""
    features: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    tier: Tier = "normal"
    cache_group: str = ""
    """Callers of one group share the prefix cache; it is the key's own id unless the key names another."""

    @property
    def max_tokens(self) -> int | None:
        """Output tokens that one request may have."""
        return self.limits.max_tokens

    @classmethod
    def of(cls, record: KeyRecord) -> Self:
        """The holder of a key of the keys file."""
        return cls(
            id=record.id,
            name=record.name,
            models=record.models,
            endpoints=record.endpoints,
            features=frozenset(record.features),
            limits=record.limits,
            tier=record.tier,
            cache_group=record.cache_group or record.id,
        )

    @classmethod
    def unlimited(cls, name: str) -> Self:
        """A caller that may do all and has no limit of its own."""
        return cls(id=name, name=name, features=frozenset({"admin", "benchmark"}), cache_group=name)

    def may_use(self, model: str) -> bool:
        """Whether the model is in scope. What is not must look absent: answer ModelNotFound."""
        return any(fnmatchcase(model, glob) for glob in self.models)

    def require_endpoint(self, path: str) -> None:
        """Raise InsufficientScope unless the route is in scope."""
        name = path.removeprefix("/api/" if path.startswith("/api/") else "/v1/").removeprefix("/")
        if self.endpoints and not any(fnmatchcase(path, glob) or fnmatchcase(name, glob) for glob in self.endpoints):
            raise InsufficientScope(path)
