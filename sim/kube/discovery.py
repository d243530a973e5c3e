"""What clients ask first: `/version`, `/api`, `/apis` and the resources of each group version. Pure.

Kubernetes documentation, "Kubernetes API Concepts", discovery: this is the unaggregated form, which a client takes that
has asked for the aggregated one and got plain `application/json`.
"""

from __future__ import annotations

from sim.kube.store import KINDS, Json, Kind

GIT_VERSION = "v1.34.0"
_VERBS = ["create", "delete", "get", "list", "patch", "watch"]


def document(path: str) -> Json | None:
    """The discovery document at a path; None where there is none."""
    parts = path.strip("/").split("/")
    match parts:
        case ["version"]:
            return _version()
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        case ["apis"]:
            groups = dict.fromkeys(kind.group for kind in KINDS if kind.group)
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name) for name in groups]}
        case ["apis", name] if any(kind.group == name for kind in KINDS):
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(name)}
        case ["api", _] | ["apis", _, _]:
            kinds = [kind for kind in KINDS if kind.prefix == "/" + "/".join(parts)]
            return _resources(kinds) if kinds else None
        case _:
            return None


def _version() -> Json:
    _, minor, _ = GIT_VERSION.split(".")
    return {
        "major": "1",
        "minor": minor,
        "gitVersion": GIT_VERSION,
        "gitCommit": "0" * 40,
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "go1.24",
        "compiler": "gc",
        "platform": "linux/amd64",
    }


def _group(name: str) -> Json:
    served = dict.fromkeys(kind.api_version for kind in KINDS if kind.group == name)
    versions = [{"groupVersion": each, "version": each.rpartition("/")[2]} for each in served]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _resources(kinds: list[Kind]) -> Json:
    named = [
        {
            "name": kind.plural,
            "singularName": kind.kind.lower(),
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": _VERBS,
        }
        for kind in kinds
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": kinds[0].api_version, "resources": named}
