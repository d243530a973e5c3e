"""`deploy/` as a real API server takes it: applied, installed by Helm, changed, and removed again."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.kube_role import DEPLOY
from tests.control_plane import ControlPlane, prepare

BASE = DEPLOY / "kustomize" / "base"
OVERLAYS = DEPLOY / "kustomize" / "overlays"
CHART = DEPLOY / "chart"
DIRECTORIES = [BASE, *sorted(OVERLAYS.iterdir()), DEPLOY / "crds"]
STRICT = ("apply", "--server-side", "--force-conflicts", "--validate=strict")
RELEASE = "from-chart"
OWN_NAMES = ("--set", f"fullnameOverride={RELEASE}", "--set", f"nameOverride={RELEASE}")
"""Beside the base, which other tests need."""


@pytest.fixture
def plane(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """What a test has removed is there again for the next."""
    yield control_plane
    prepare(control_plane)


def helm(plane: ControlPlane, *arguments: str) -> str:
    """What it printed. Raises: AssertionError. Skips without the program."""
    if (program := shutil.which("helm")) is None:
        pytest.skip("needs helm on PATH; neither Debian nor PyPI has it")
    argv = [program, "--kubeconfig", str(plane.kubeconfig), "-n", "kube-system", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), f"helm {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_every_directory_is_taken_without_a_warning(plane: ControlPlane, directory: Path) -> None:
    done = plane.kubectl(*STRICT, "--dry-run=server", "-k", str(directory))

    assert done.stderr == ""


def test_the_validation_can_fail(plane: ControlPlane) -> None:
    role = (BASE / "rbac.yaml").read_text().replace("resources: [eniconfigs]", "resource: [eniconfigs]")

    done = plane.kubectl(*STRICT, "--dry-run=server", "-f", "-", stdin=role, check=False)

    assert 'unknown field "rules[1].resource"' in done.stderr or ".rules" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize("directory", [BASE, *sorted(OVERLAYS.iterdir())], ids=lambda path: path.name)
def test_it_is_applied_changed_by_nothing_and_removed(plane: ControlPlane, directory: Path) -> None:
    """As `deploy/README.md` says it: apply -k, and delete -k. A second time changes nothing."""
    plane.kubectl("apply", "-k", str(directory))
    again = plane.kubectl("apply", "-k", str(directory)).stdout.splitlines()
    assert [line for line in again if not line.endswith("unchanged")] == []
    rendered = yaml.safe_load_all(plane.kubectl("kustomize", str(directory)).stdout)
    (written,) = (one for one in rendered if one["kind"] == "DaemonSet")
    (stored,) = plane.get("daemonsets", "-n", "kube-system")["items"]
    assert is_within(written["spec"], stored["spec"]) == []
    plane.kubectl("delete", "-k", str(directory))
    assert plane.get("daemonsets", "-n", "kube-system")["items"] == []


def test_a_pod_of_the_daemon_set_is_admitted_as_it_is_written(plane: ControlPlane) -> None:
    """What the DaemonSet's controller would make: the account's token is mounted, the priority is resolved."""
    template = yaml.safe_load((BASE / "daemonset.yaml").read_text())["spec"]["template"]
    metadata = {"name": "enoki-x", "namespace": "kube-system", **template["metadata"]}
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    plane.kubectl("create", "--validate=strict", "-f", "-", stdin=json.dumps(document))
    try:
        pod = plane.get("pod", "enoki-x", "-n", "kube-system")
    finally:
        plane.kubectl("delete", "pod", "enoki-x", "-n", "kube-system", "--grace-period=0", "--force")

    assert pod["spec"]["priority"] == 2_000_001_000
    (agent,) = pod["spec"]["containers"]
    mounts = {one["mountPath"] for one in agent["volumeMounts"]}
    assert "/var/run/secrets/kubernetes.io/serviceaccount" in mounts
    assert is_within(template["spec"], pod["spec"]) == []


def test_the_agent_s_account_may_do_what_the_role_says_and_nothing_else(plane: ControlPlane) -> None:
    def may(verb: str, resource: str, namespace: str = "default") -> bool:
        account = "--as=system:serviceaccount:kube-system:enoki"
        asked = plane.kubectl("auth", "can-i", verb, resource, account, "-n", namespace, check=False)
        return asked.stdout.strip() == "yes"

    assert all(may(verb, resource) for resource in ("pods", "nodes") for verb in ("list", "watch"))
    assert all(may(verb, "eniconfigs.crd.k8s.amazonaws.com") for verb in ("list", "watch"))
    assert all(may(verb, "events.events.k8s.io") for verb in ("create", "patch"))
    assert not any(may(verb, "pods") for verb in ("get", "create", "patch", "delete"))
    assert not any(may(verb, "nodes") for verb in ("get", "patch", "update"))
    assert not any(may("get", resource) for resource in ("secrets", "configmaps", "events"))
    assert not may("create", "events")


def test_helm_installs_upgrades_and_uninstalls(plane: ControlPlane) -> None:
    helm(plane, "install", RELEASE, str(CHART), *OWN_NAMES)
    try:
        enis = ("--set", "eniConfig.create=true", "--set", "eniConfig.subnets.us-west-2a.id=subnet-1")
        helm(plane, "upgrade", RELEASE, str(CHART), *OWN_NAMES, *enis, "--set", "env.ANNOTATE_POD_IP=true")
        (config,) = plane.get("eniconfigs")["items"]
        assert (config["metadata"]["name"], config["spec"]) == ("us-west-2a", {"subnet": "subnet-1"})
        account = f"--as=system:serviceaccount:kube-system:{RELEASE}"
        assert plane.kubectl("auth", "can-i", "patch", "pods", account).stdout.strip() == "yes"
        assert plane.get("daemonset", RELEASE, "-n", "kube-system")["metadata"]["generation"] == 2
    finally:
        helm(plane, "uninstall", RELEASE)
    assert plane.get("eniconfigs")["items"] == []
    assert RELEASE not in plane.kubectl("get", "clusterroles", "-o", "name").stdout


def test_what_helm_renders_is_taken_without_a_warning(plane: ControlPlane) -> None:
    rendered = helm(plane, "template", RELEASE, str(CHART), *OWN_NAMES, "--include-crds", "--kube-version", "1.33")

    done = plane.kubectl(*STRICT, "--dry-run=server", "-f", "-", stdin=rendered)

    assert done.stderr == ""


def is_within(written: Any, stored: Any, path: str = "") -> list[str]:
    """Where what is stored lacks or contradicts what was written; what the server adds does not count."""
    if isinstance(written, dict) and isinstance(stored, dict):
        return [found for key, value in written.items() for found in is_within(value, stored.get(key), f"{path}.{key}")]
    if isinstance(written, list) and isinstance(stored, list) and len(written) <= len(stored):
        pairs = zip(written, stored, strict=False)
        return [
            found for number, (one, other) in enumerate(pairs) for found in is_within(one, other, f"{path}[{number}]")
        ]
    return [] if written == stored else [f"{path}: {written!r} became {stored!r}"]
