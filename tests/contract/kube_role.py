"""What the manifests allow the agent in Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sim.kube.users import Permission

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BASE = DEPLOY / "kustomize" / "base" / "rbac.yaml"
ANNOTATING = DEPLOY / "kustomize" / "overlays" / "annotate-pod-ip" / "kustomization.yaml"


def permissions(rules: list[dict[str, Any]]) -> frozenset[Permission]:
    return frozenset(
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


def base_role() -> list[dict[str, Any]]:
    (role,) = (one for one in yaml.safe_load_all(BASE.read_text()) if one["kind"] == "ClusterRole")
    rules: list[dict[str, Any]] = role["rules"]
    return rules


def annotating_rules() -> list[dict[str, Any]]:
    patches = yaml.safe_load(ANNOTATING.read_text())["patches"]
    (patch,) = (yaml.safe_load(one["patch"]) for one in patches if one["target"]["kind"] == "ClusterRole")
    return [operation["value"] for operation in patch]
