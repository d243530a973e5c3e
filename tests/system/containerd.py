"""Debian's containerd with a root, a state directory, a socket and a CNI configuration of its own.

Works with containerd 1.6 (Debian 12) and 1.7 (Debian 13, Ubuntu 24.04), on cgroup v1 and v2. It touches neither
/etc/containerd nor /etc/cni nor a containerd that runs already. The one thing it cannot place elsewhere is the shims'
sockets: containerd compiles /run/containerd/s in (pkg/shim, `socketRoot`); they are removed one by one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.processes import AT_ONCE, GRACEFUL, ProcessId, end, tail
from tests.system import containerd_image
from tests.system.cri import Cri, CriFailed, SandboxConfig, SandboxStatus

START_DEADLINE_S = 30.0
COMMAND_DEADLINE_S = 30.0
IMPORT_DEADLINE_S = 120.0
PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins installs the CNI project's plugins."""

_POLL_S = 0.02
_PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "nsenter")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class ContainerdFailed(Exception):
    """containerd did not get ready; the message ends with its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerdPlan:
    """What a containerd is to be.

    name: unique on the machine; /run/<name> and the cgroup /<name> are its own. Short: sockets are below it (unix(7)).
    netns: path of the node's network namespace.
    network: the CNI network configuration list; or the directory that somebody else keeps it in.
    plugins: executables the list names, beside `loopback`, which the runtime itself calls.
    environment: for containerd and thereby for the plugins, which inherit it.
    snapshotter: `native` copies, which works everywhere and costs nothing for an image of 2 MB.
    network_comes_later: it is not waited for at the start.
    netns_in_run: pods' namespaces are in /run/netns, as on a node; otherwise below the state directory.
    """

    name: str
    netns: Path
    network: Mapping[str, Any] | Path
    plugins: Mapping[str, Path]
    environment: Mapping[str, str]
    netns_in_run: bool = False
    snapshotter: str = "native"
    network_comes_later: bool = False


def missing() -> str:
    """What a containerd cannot run without and this machine lacks; empty when it has everything."""
    programs = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    files = [str(path) for path in (containerd_image.BUSYBOX, PLUGINS / "loopback") if not path.exists()]
    return ", ".join(programs + files)


class Containerd:
    """A running containerd; leaves nothing behind at the end of its `with` block, however that ends."""

    def __init__(self, plan: ContainerdPlan) -> None:
        self.plan = plan
        self.directory = Path("/run") / plan.name
        self.socket = self.directory / "containerd.sock"
        self.log = self.directory / "containerd.log"
        self._cri: Cri | None = None
        self._undo = contextlib.ExitStack()
        self.pid = 0

    @property
    def cri(self) -> Cri:
        assert self._cri is not None, "containerd has not been started"
        return self._cri

    def __enter__(self) -> Containerd:
        with contextlib.ExitStack() as undo:  # from the last to the first, each whatever became of the one before
            self.directory.mkdir(mode=0o711)
            undo.callback(shutil.rmtree, self.directory)
            undo.callback(_remove_cgroups, self.plan.name)
            undo.callback(unmount_below, self.directory)
            undo.callback(_end_shims, self.directory, self.socket)
            self._write_configuration()
            process = self._start()
            self.pid = process.pid
            undo.callback(_end, process)
            self._cri = undo.enter_context(Cri(self.socket))
            self._await_ready(process, self._conditions_met, "RuntimeReady and NetworkReady")
            undo.callback(self._remove_pods)
            self._import_pause_image()
            # The CRI plugin learns of images through an event; before it has, it would try to pull.
            self._await_ready(process, lambda: self.cri.has_image(containerd_image.REFERENCE), "pause image")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._undo.close()

    def run_pod(
        self,
        name: str,
        *,
        namespace: str = "default",
        host_ports: Mapping[int, int] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> SandboxStatus:
        """Run a sandbox as the kubelet does for a pod; its status, with its addresses. For the rest see
        `SandboxConfig`.

        Raises: CriFailed with the CNI plugin's text in it.
        """
        config = SandboxConfig(
            name=name,
            namespace=namespace,
            uid=str(uuid.uuid4()),
            cgroup_parent=f"/{self.plan.name}",
            log_directory=self.directory / "pods" / f"{namespace}_{name}",
            host_ports=host_ports or {},
            annotations=annotations or {},
        )
        return self.cri.sandbox_status(self.cri.run_sandbox(config))

    def remove_pod(self, sandbox_id: str) -> None:
        """Stop and remove, as the kubelet does. Raises: CriFailed."""
        self.cri.stop_sandbox(sandbox_id)
        self.cri.remove_sandbox(sandbox_id)

    def _write_configuration(self) -> None:
        binaries, networks = self.directory / "bin", self.directory / "net.d"
        for path in (binaries, networks, self.directory / "opt"):
            path.mkdir()
        for name, program in {"loopback": PLUGINS / "loopback", **self.plan.plugins}.items():
            (binaries / name).symlink_to(program)
        if isinstance(self.plan.network, Path):
            networks = self.plan.network
        else:
            (networks / "10-test.conflist").write_text(json.dumps(self.plan.network))
        (self.directory / "config.toml").write_text(_configuration(self.plan, self.directory, networks))

    def _start(self) -> subprocess.Popen[bytes]:
        # In the node's network namespace, as on a node: what plugins do by themselves (ptp, a chained portmap) happens
        # there and never in the machine's own namespace. nsenter, not `ip netns exec`: the latter makes a mount
        # namespace, in which the pods' network namespaces would be mounted out of the agent's sight.
        argv = ["nsenter", f"--net={self.plan.netns}", "--", "containerd"]
        with self.log.open("ab") as sink:
            return subprocess.Popen(
                [*argv, "--config", str(self.directory / "config.toml")],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                env={"PATH": _PATH, **self.plan.environment},
            )

    def import_image(self, archive: Path, reference: str) -> None:
        """Import an archive of one image and wait until the CRI plugin knows it."""
        self._import(archive.read_bytes())
        self._await_image(reference)

    def _import_pause_image(self) -> None:
        self._import(containerd_image.pause_image_archive())

    def _import(self, archive: bytes) -> None:
        # Unpacked by the CRI plugin when the first sandbox needs it; unpacking here would have to name a snapshotter,
        # and containerd 1.6 and 2.x disagree on which ones an import may name.
        imported = subprocess.run(
            ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", "images", "import", "--no-unpack", "-"],
            input=archive,
            capture_output=True,
            check=False,
            timeout=IMPORT_DEADLINE_S,
        )
        if imported.returncode != 0:
            raise ContainerdFailed(f"ctr images import: {imported.stderr.decode(errors='replace')}")

    def _await_image(self, reference: str) -> None:
        """The CRI plugin learns of images through an event; before it has, it would try to pull."""
        deadline = time.monotonic() + START_DEADLINE_S
        while not self.cri.has_image(reference):
            if time.monotonic() > deadline:
                raise ContainerdFailed(f"containerd has no {reference}\n{tail(self.log)}")
            time.sleep(_POLL_S)

    def _conditions_met(self) -> bool:
        conditions = self.cri.status()
        if self.plan.network_comes_later:
            return any(condition.met for condition in conditions if condition.kind == "RuntimeReady")
        return bool(conditions) and all(condition.met for condition in conditions)

    def is_network_ready(self) -> bool:
        """What the kubelet makes the node's Ready of."""
        return all(condition.met for condition in self.cri.status())

    def _await_ready(self, process: subprocess.Popen[bytes], ready: Callable[[], bool], what: str) -> None:
        """Ask again and again: CRI has no call that waits, and an unready runtime answers with errors."""
        answer = ""
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if ready():
                    return
            except CriFailed as exc:
                answer = str(exc)
            time.sleep(_POLL_S)
        raise ContainerdFailed(f"containerd has no {what}; {answer}\n{tail(self.log)}")

    def _remove_pods(self) -> None:
        with contextlib.suppress(CriFailed):  # what a failing runtime leaves behind is ended by pid
            for sandbox in self.cri.sandboxes():
                self.remove_pod(sandbox.sandbox_id)


def _configuration(plan: ContainerdPlan, directory: Path, networks: Path) -> str:
    """Version 2 of containerd's configuration, which 1.6 and 1.7 read as it is and 2.x migrates."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    text = json.dumps  # a JSON string is a TOML basic string
    return f"""\
version = 2
root = {text(str(directory / "root"))}
state = {text(str(directory / "state"))}

[grpc]
address = {text(str(directory / "containerd.sock"))}

[plugins."io.containerd.internal.v1.opt"]
path = {text(str(directory / "opt"))}

[plugins."io.containerd.nri.v1.nri"]
disable = true

[{cri}]
sandbox_image = {text(containerd_image.REFERENCE)}
# The sandbox asks for an OOM score of -998; a machine that is itself a container may not go below its own.
restrict_oom_score_adj = true
# Loading the default profile would change the machine's AppArmor.
disable_apparmor = true
netns_mounts_under_state_dir = {str(not plan.netns_in_run).lower()}

[{cri}.cni]
bin_dir = {text(str(directory / "bin"))}
conf_dir = {text(str(networks))}

[{cri}.containerd]
default_runtime_name = "runc"
snapshotter = {text(plan.snapshotter)}

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
Root = {text(str(directory / "runc"))}
SystemdCgroup = false
"""


def _end(process: subprocess.Popen[bytes]) -> None:
    end(ProcessId.of(process.pid), signals=GRACEFUL)
    process.wait(timeout=COMMAND_DEADLINE_S)


def _end_shims(directory: Path, socket: Path) -> None:
    """End what outlives its containerd by design: the shims, their sandboxes, the sockets of the shims."""
    for process in _shims_and_sandboxes(socket):
        end(process, signals=AT_ONCE)
    for address in directory.glob("state/io.containerd.runtime.v2.task/*/*/address"):
        Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)


def _shims_and_sandboxes(socket: Path) -> list[ProcessId]:
    """Shims that report to the containerd behind `socket`, each after the sandbox process it is the parent of."""
    shims = set()
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended while we looked
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            # The command name may hold spaces and parentheses; state and parent follow the last one (proc(5)).
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if argv[0].endswith(b"containerd-shim-runc-v2") and os.fsencode(socket) in argv:
                shims.add(int(entry.name))
    sandboxes = [pid for pid, parent in parents.items() if parent in shims]
    return [ProcessId.of(pid) for pid in [*sandboxes, *shims]]


def unmount_below(directory: Path) -> None:
    """What programs that have ended left mounted there.

    Fifth field of /proc/self/mountinfo (proc(5)), innermost first; our own paths hold nothing it would escape.
    """
    with Path("/proc/self/mountinfo").open() as lines:
        found = [line.split()[4] for line in lines]
    for mountpoint in reversed(found):
        if mountpoint.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", mountpoint], check=True, timeout=COMMAND_DEADLINE_S)


def _remove_cgroups(name: str) -> None:
    """Remove /<name> from the unified hierarchy, or from each controller's of cgroup v1."""
    root = Path("/sys/fs/cgroup")
    for top in [root / name, *root.glob(f"*/{name}")]:
        for directory, _, _ in os.walk(top, topdown=False):
            Path(directory).rmdir()
