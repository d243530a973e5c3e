"""The manifests are valid, agree with the code and with one another, and ask for no more than is written down."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agent.settings import load
from tests import control_plane

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BASE = DEPLOY / "kustomize" / "base"
OVERLAYS = DEPLOY / "kustomize" / "overlays"
CHART = DEPLOY / "chart"
VERSIONS = ("1.25", "1.29", "1.33", "1.37")
"""Of Kubernetes, whose published OpenAPI schemas `kubernetes-validate` carries: the oldest we promise to the newest."""
FROM_THE_DOWNWARD_API = {"MY_NODE_NAME", "MY_POD_NAME"}
AWS_VALUES = """
    affinity env eniConfig extraEnv extraVolumeMounts extraVolumes fullnameOverride image imagePullSecrets init
    livenessProbe livenessProbeTimeoutSeconds nameOverride nodeSelector podAnnotations podLabels podSecurityContext
    priorityClassName readinessProbe readinessProbeTimeoutSeconds resources securityContext serviceAccount tolerations
    updateStrategy
""".split()  # noqa: SIM905  # a list of names reads better than quotes
"""Top-level values of the aws-vpc-cni chart 1.23 that have a meaning here."""


def documents(*paths: Path) -> Iterator[dict[str, Any]]:
    for path in paths:
        yield from (found for found in yaml.safe_load_all(path.read_text()) if found)


def base() -> list[dict[str, Any]]:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    return list(documents(*(BASE / name for name in kustomization["resources"])))


def pod_spec(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (daemon_set,) = (one for one in objects if one["kind"] == "DaemonSet")
    found: dict[str, Any] = daemon_set["spec"]["template"]["spec"]
    return found


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spec = pod_spec(objects)
    return [*spec["initContainers"], *spec["containers"]]


def rendered(*argv: str) -> list[dict[str, Any]]:
    """What a program that reads our files prints. Skips without the program."""
    if shutil.which(argv[0]) is None:
        pytest.skip(f"needs {argv[0]}, which neither Debian nor PyPI has")
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def chart(*arguments: str) -> list[dict[str, Any]]:
    return rendered("helm", "template", "enoki", str(CHART), "-n", "kube-system", "--kube-version", "1.33", *arguments)


# --- The base, with nothing but Python -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_for_kubernetes(version: str) -> None:
    for found in [*base(), *documents(DEPLOY / "crds" / "eniconfig.yaml")]:
        kubernetes_validate.validate(found, version, strict=True)


def test_the_validation_can_fail() -> None:
    (broken,) = (one for one in base() if one["kind"] == "DaemonSet")
    pod_spec([broken])["hostnetwork"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_no_container_is_privileged_and_each_capability_is_explained() -> None:
    explained = set(re.findall(r"^\| `([A-Z_]+)` \|", (DEPLOY / "README.md").read_text(), re.MULTILINE))
    asked: set[str] = set()
    for container in containers(base()):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True, container["name"]
        assert context["allowPrivilegeEscalation"] is False, container["name"]
        assert "privileged" not in context
        assert context["capabilities"]["drop"] == ["ALL"]
        asked.update(context["capabilities"].get("add", []))
    assert asked == explained
    assert pod_spec(base())["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}


def test_the_settings_exist_and_are_allowed() -> None:
    for container in containers(base()):
        values = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        others = {one["name"] for one in container["env"]} - set(values)
        assert others <= FROM_THE_DOWNWARD_API
        settings = load(values)
        assert settings.notices == ()
        assert set(values) <= set(settings.provenance), "a name that nothing reads"


def test_mounts_and_volumes_match() -> None:
    spec = pod_spec(base())
    mounts = [mount for container in containers(base()) for mount in container["volumeMounts"]]
    assert {mount["name"] for mount in mounts} == {volume["name"] for volume in spec["volumes"]}
    (netns,) = (mount for mount in mounts if mount["name"] == "netns-dir")
    # What is for the doctor alone can change nothing, and none of it is /run/systemd, where systemd takes orders.
    for mount in (mount for mount in mounts if mount["name"].startswith("host-")):
        assert mount["readOnly"] is True, mount
        assert mount["mountPath"] != "/host/run/systemd"
    assert (netns["mountPath"], netns["mountPropagation"]) == ("/run/netns", "HostToContainer")


def test_commands_are_modules_that_exist() -> None:
    commands = [container["command"] for container in containers(base())]
    commands += [
        pod_spec(base())["containers"][0][probe]["exec"]["command"] for probe in ("livenessProbe", "readinessProbe")
    ]
    for program, flag, module, *_ in commands:
        assert (program, flag) == ("python", "-m")
        path = DEPLOY.parent.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_a_second_agent_is_never_waited_for() -> None:
    """One agent owns a node; with maxSurge the new pod would have to be ready while the old one still runs."""
    (daemon_set,) = (one for one in base() if one["kind"] == "DaemonSet")
    strategy = daemon_set["spec"]["updateStrategy"]
    assert (strategy["type"], set(strategy["rollingUpdate"])) == ("RollingUpdate", {"maxUnavailable"})


def test_rbac_names_everything_and_changes_nothing_but_events() -> None:
    (role,) = (one for one in base() if one["kind"] == "ClusterRole")
    for rule in role["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if set(rule["verbs"]) - {"get", "list", "watch"}:
            assert (rule["apiGroups"], rule["resources"]) == (["events.k8s.io"], ["events"])


# --- The chart, with nothing but Python ------------------------------------------------------------------------------


def test_the_chart_s_values_are_the_aws_chart_s() -> None:
    assert sorted(yaml.safe_load((CHART / "values.yaml").read_text())) == sorted(AWS_VALUES)


def test_the_chart_brings_the_same_crd() -> None:
    """A copy: Helm warns of links at every install."""
    assert (CHART / "crds" / "eniconfig.yaml").read_bytes() == (DEPLOY / "crds" / "eniconfig.yaml").read_bytes()


def test_every_value_is_used_and_every_used_value_exists() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    text = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    used = {tuple(name.split(".")) for name in re.findall(r"\.Values\.([A-Za-z_.]+)", text)}
    assert {name[0] for name in used} == set(values)
    for name in used - {("env", "ANNOTATE_POD_IP")}:
        inner = values
        for part in name:
            assert part in inner, name
            inner = inner[part]


# --- With the programs that read them --------------------------------------------------------------------------------


def without_decoration(objects: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """By kind and name, without what Helm and kustomize add or order: labels, namespaces, the image's registry."""
    found = {}
    for one in objects:
        metadata = {key: value for key, value in one["metadata"].items() if key not in {"labels", "namespace"}}
        found[one["kind"], metadata["name"]] = {**one, "metadata": metadata}
    for container in containers(objects):
        container["image"] = "enoki"
        container["env"].sort(key=lambda one: one["name"])
    return found


def test_the_chart_renders_the_base() -> None:
    assert without_decoration(chart()) == without_decoration(base())


def test_the_chart_s_other_branches_are_valid() -> None:
    arguments = [
        "--include-crds",
        "--set",
        "eniConfig.create=true",
        "--set",
        "eniConfig.subnets.us-west-2a.id=subnet-1",
    ]
    arguments += [
        "--set",
        "eniConfig.subnets.us-west-2a.securityGroups={sg-1,sg-2}",
        "--set",
        "env.ANNOTATE_POD_IP=true",
    ]
    arguments += ["--set", "image.override=example.com/x:1", "--set", "init.image.overrideRepository=example.com/y"]
    arguments += ["--set", "extraVolumes[0].name=v", "--set", "extraVolumes[0].emptyDir.medium=Memory"]
    arguments += ["--set", "extraVolumeMounts[0].name=v", "--set", "extraVolumeMounts[0].mountPath=/v"]
    arguments += ["--set", "serviceAccount.annotations.a=b", "--set", "nodeSelector.a=b", "--set", "podLabels.a=b"]
    objects = chart(*arguments)
    for found in objects:
        if found["kind"] != "ENIConfig":
            kubernetes_validate.validate(found, VERSIONS[-1], strict=True)
    (config,) = (found for found in objects if found["kind"] == "ENIConfig")
    assert config["spec"] == {"subnet": "subnet-1", "securityGroups": ["sg-1", "sg-2"]}
    assert [container["image"] for container in containers(objects)] == ["example.com/y:0.1.0", "example.com/x:1"]
    (role,) = (found for found in objects if found["kind"] == "ClusterRole")
    assert {"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]} in role["rules"]


@pytest.mark.parametrize("directory", [BASE, *sorted(OVERLAYS.iterdir())], ids=lambda path: path.name)
def test_kustomize_builds(directory: Path) -> None:
    kubectl = control_plane.program("kubectl")
    built_in = kubectl is not None and shutil.which("kustomize") is None
    objects = rendered(*([str(kubectl), "kustomize"] if built_in else ["kustomize", "build"]), str(directory))
    for found in objects:
        kubernetes_validate.validate(found, VERSIONS[-1], strict=True)
        assert found["kind"].startswith(("Cluster", "Custom")) or found["metadata"]["namespace"] == "kube-system"
    for container in containers(objects):
        load({one["name"]: one["value"] for one in container["env"] if "value" in one})
