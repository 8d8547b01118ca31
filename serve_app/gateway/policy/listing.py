"""The table as an operator reads it: every field of every route, what becomes of it, and its bounds or the reason."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from serve_app.gateway.policy.entries import RoutePolicy
from serve_app.gateway.policy.rules import Rule
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.table import table
from serve_app.gateway.routes import MODEL_ROUTES, ModelRoute

INTRODUCTION = """\
- **allowed**, **bounded**: it goes to the model, within these bounds.
- **removed**: clients send it, and it means nothing here.
- **set by us**: its value is the service's own.
- **refused**: it is closed, for this reason.
- **feature**: only keys with that feature may set it (`vllm-chat keys create --feature`).

A field that is not listed is unknown, and refused. One that is null counts as absent. `[]` stands for each item of a
list, `(kind)` for the kinds of object that have the field. The bounds are the settings under `policy:`
([settings.py](../serve_app/gateway/policy/settings.py)); this page shows their defaults, and
`python -m serve_app.gateway.policy serve_config.yaml` those of a service."""


class Line(NamedTuple):
    """One field of a route."""

    field: str
    """Its path, such as `messages[].content`."""
    verdict: str
    says: str
    """Its bounds, or why it is closed."""


class Section(NamedTuple):
    """The fields of a route's body."""

    paths: list[str]
    """The routes that take it."""
    notes: list[str]
    """What holds for the body as a whole."""
    lines: list[Line]


def sections(config: PolicyConfig) -> list[Section]:
    """The whole table under these settings."""
    return [_section(path, policy, config) for path, policy in table(config).items()]


def markdown(found: list[Section]) -> str:
    """Sections as a Markdown page."""
    parts = ["# What a request may hold", INTRODUCTION]
    for section in found:
        parts += [f"## {_names(section.paths)}", *section.notes]
        rows = [f"| `{_escape(line.field)}` | {line.verdict} | {_escape(line.says)} |" for line in section.lines]
        parts.append("\n".join(["| field | verdict | bounds, or the reason |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _section(path: str, policy: RoutePolicy, config: PolicyConfig) -> Section:
    routes = {public: route for public, route in MODEL_ROUTES.items() if route.path == path}
    lines = [line for name, rule in policy.fields.items() for line in _lines(name, rule)]
    required = list(policy.required)
    if any(route.multipart for route in routes.values()):
        lines.insert(0, Line("file", "bounded", f"one file, in a form of at most {config.media.body_bytes} bytes"))
        required.insert(0, "file")
    return Section(list(routes), list(_notes(policy, required, routes)), lines)


def _notes(policy: RoutePolicy, required: list[str], routes: dict[str, ModelRoute]) -> Iterator[str]:
    if required:
        yield f"Required: {_names(required)}."
    for public, route in routes.items():
        if route.model_required:
            yield f"`{public}` requires `model` too."
        if route.stream_by_default:
            yield f"`{public}` streams unless `stream` is false."
    if policy.length:
        yield (
            f"{_names(policy.length)}: at most the key's own limit (`--max-tokens`) and `policy.max_tokens`; "
            f"the smaller is also set where none is given."
        )


def _lines(field: str, rule: Rule) -> Iterator[Line]:
    yield Line(field, rule.verdict, rule.says())
    for path, inner in rule.inside():
        yield from _lines(field + path, inner)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
