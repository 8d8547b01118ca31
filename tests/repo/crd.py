"""Checks a custom resource against its CRD offline, as strictly as the API server with strict fields does."""

import copy
import os
from pathlib import Path
from typing import Any

import jsonschema
import yaml

REPOSITORY = Path(__file__).parents[2]


def crd_folder() -> Path:
    """Where CRDs are looked for: $CRD_DIR, else `shared/crds` beside the checkout."""
    return Path(os.environ.get("CRD_DIR") or REPOSITORY.parent / "shared" / "crds")


def schema_of(api_version: str, kind: str, folder: Path) -> dict[str, Any]:
    """The schema of one version of a kind, closed: it refuses fields that the CRD does not name."""
    group, version = api_version.split("/")
    path = folder / f"{group}_{kind.lower()}s.yaml"
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    (served,) = (each for each in crd["spec"]["versions"] if each["name"] == version and each["served"])
    schema: dict[str, Any] = served["schema"]["openAPIV3Schema"]
    close(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def close(schema: object) -> None:
    """Forbids unknown fields wherever the schema lists the known ones."""
    if not isinstance(schema, dict):
        return
    known = schema.get("properties")
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(known, dict) and not open_ended:
        schema["additionalProperties"] = False
    for inner in [*(known or {}).values(), schema.get("items"), schema.get("additionalProperties")]:
        close(inner)


def with_defaults(schema: dict[str, Any], value: Any) -> Any:
    """A copy of `value` with the CRD's defaults, which some required fields rely on."""
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        defaults = {name: copy.deepcopy(each["default"]) for name, each in known.items() if "default" in each}
        return {name: with_defaults(known.get(name, {}), inner) for name, inner in {**defaults, **value}.items()}
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [with_defaults(schema["items"], inner) for inner in value]
    return value


def errors(resource: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """What the schema refuses in the resource, as `path: reason`."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(with_defaults(schema, resource))
    return [f"{'/'.join(map(str, each.absolute_path))}: {each.message[:200]}" for each in found]
