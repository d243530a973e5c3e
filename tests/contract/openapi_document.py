"""The committed OpenAPI document as a validator of live answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

PATH = Path(__file__).resolve().parents[2] / "openapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(PATH.read_text())


def problems_with(value: Any, schema: str) -> list[str]:
    """How `value` breaks the component schema of that name; empty when it does not."""
    return problems_with_schema(value, {"$ref": f"#/components/schemas/{schema}"})


def problems_with_schema(value: Any, schema: dict[str, Any]) -> list[str]:
    """How `value` breaks a schema that may refer to the document's components."""
    validator = Draft202012Validator(schema | {"components": DOCUMENT["components"]})
    return [error.message for error in validator.iter_errors(value)]
