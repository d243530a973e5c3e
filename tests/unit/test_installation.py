"""The network configuration on the host: what it says, when it is there, and how a file is replaced."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from agent.errors import AgentError, Cause, CloudDenied, KernelFailed
from agent.installation.__main__ import install
from agent.installation.conflist import FILE_NAME, ahead_of_ours, network_configuration
from agent.installation.files import remove_file, replace_file
from agent.installation.publisher import RECHECK_S, SOON_S, InstallationPolicy, Publisher, boot_time_s, written_before
from agent.installation.verdict import START_GRACE_S, UNDECIDED_S, Situation, Wish, decide

DENIED = CloudDenied(Cause.IAM_DENIED, "ec2:AssignPrivateIpAddresses is not allowed")


# --- What it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_the_configuration_names_our_plugin_and_asks_for_host_ports_and_bandwidth(version: str) -> None:
    found = json.loads(network_configuration(version))
    assert found == {
        "cniVersion": version,
        "name": "enoki",
        "plugins": [{"type": "enoki", "capabilities": {"portMappings": True, "bandwidth": True}}],
    }


def test_it_comes_before_every_usual_neighbour_and_after_multus() -> None:
    usual = ["10-aws.conflist", "10-calico.conflist", "87-podman-bridge.conflist", "10-containerd-net.conflist"]
    assert ahead_of_ours(usual) == []
    assert ahead_of_ours([*usual, "00-multus.conf", ".05-enoki.conflist.new", "00-readme.txt"]) == ["00-multus.conf"]


# --- When it is there ------------------------------------------------------------------------------------------------


def situation(**changes: object) -> Situation:
    values: dict[str, object] = {
        "started": False,
        "has_addresses": False,
        "trouble": "",
        "from_before_boot": False,
        "stage_s": 0.0,
        "pod_count": None,
    }
    return Situation(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "wish"),
    [
        ({"started": True, "has_addresses": True}, Wish.PUBLISH),
        ({"started": True, "has_addresses": True, "from_before_boot": True}, Wish.PUBLISH),
        ({"started": True, "has_addresses": True, "trouble": "subnet_exhausted"}, Wish.PUBLISH),
        ({"started": True}, Wish.LEAVE),
        ({"started": True, "stage_s": UNDECIDED_S}, Wish.PUBLISH),
        ({"started": True, "trouble": "iam_denied"}, Wish.WITHDRAW),
        ({}, Wish.LEAVE),
        ({"stage_s": START_GRACE_S}, Wish.LEAVE),
        ({"stage_s": START_GRACE_S + 1, "pod_count": 0}, Wish.WITHDRAW),
        ({"stage_s": START_GRACE_S + 1, "pod_count": 1}, Wish.LEAVE),
        ({"stage_s": START_GRACE_S + 1, "pod_count": None}, Wish.LEAVE),
        ({"from_before_boot": True}, Wish.WITHDRAW),
    ],
)
def test_when_it_should_be_there(changes: dict[str, object], wish: Wish) -> None:
    assert decide(situation(**changes)) is wish


class World:
    """A node as the publisher sees it."""

    def __init__(self, directory: Path | None) -> None:
        self.now_s = 0.0
        self.started = False
        self.trouble: AgentError | None = None
        self.addresses = True
        self.pods = 0
        self.publisher = Publisher(
            InstallationPolicy(directory=directory),
            started=lambda: self.started,
            has_addresses=lambda: self.addresses,
            unavailable=lambda: self.trouble,
            pod_count=self.count,
            clock=lambda: self.now_s,
        )

    async def count(self) -> int:
        return self.pods


async def test_a_node_s_life(tmp_path: Path) -> None:
    world, path = World(tmp_path), tmp_path / FILE_NAME
    expected = network_configuration("1.0.0")

    assert await world.publisher.step() == SOON_S
    assert not path.exists(), "not while it starts"
    world.started = True
    assert await world.publisher.step() == RECHECK_S
    assert path.read_bytes() == expected
    assert path.stat().st_mode & 0o777 == 0o644
    path.write_text("{}")
    await world.publisher.step()
    assert path.read_bytes() == expected, "what somebody changed is back"
    path.unlink()
    await world.publisher.step()
    assert path.read_bytes() == expected, "what somebody removed is back"
    world.trouble = DENIED
    assert await world.publisher.step() == RECHECK_S, "pods run, or can"
    world.addresses = False
    assert await world.publisher.step() == SOON_S
    assert list(tmp_path.iterdir()) == []
    world.trouble, world.addresses = None, True
    await world.publisher.step()
    assert path.read_bytes() == expected


async def test_an_agent_that_starts_again_leaves_the_file_while_pods_run(tmp_path: Path) -> None:
    world, path = World(tmp_path), tmp_path / FILE_NAME
    path.write_text("of the agent before")
    world.pods = 3
    for world.now_s in (0.0, START_GRACE_S + 1, 3600.0):
        await world.publisher.step()
        assert path.exists()
    world.pods = 0
    await world.publisher.step()
    assert not path.exists()


async def test_a_file_from_before_the_boot_goes_at_once(tmp_path: Path) -> None:
    world, path = World(tmp_path), tmp_path / FILE_NAME
    path.write_text("of the agent before")
    os.utime(path, (boot_time_s() - 60, boot_time_s() - 60))
    await world.publisher.step()
    assert not path.exists()


async def test_a_foreign_file_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    for name in ("00-other.conflist", "10-aws.conflist"):
        (tmp_path / name).write_text("{}")
    world.started = True
    await world.publisher.step()
    world.trouble, world.addresses = DENIED, False
    await world.publisher.step()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00-other.conflist", "10-aws.conflist"]


async def test_a_directory_that_is_not_there_is_a_failure_with_a_name(tmp_path: Path) -> None:
    world = World(tmp_path / "absent")
    world.started = True
    with pytest.raises(KernelFailed, match="absent: No such file or directory") as caught:
        await world.publisher.step()
    assert caught.value.cause is Cause.HOST_FILE_REFUSED
    assert "HOST_CNI_CONFDIR_PATH" in caught.value.remedy


async def test_without_a_directory_nothing_is_published() -> None:
    world = World(None)
    world.started = True
    assert await world.publisher.step() == float("inf")


def test_the_boot_time_is_before_now(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert not written_before(path, 1e12)
    path.touch()
    assert 0 < boot_time_s() < path.stat().st_mtime
    (tmp_path / "stat").write_text("cpu  1 2\nbtime 1700000000\n")
    assert boot_time_s(tmp_path / "stat") == 1_700_000_000


# --- How a file is replaced ------------------------------------------------------------------------------------------


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {bytes([number]) * 65536 for number in range(20)}
    path.write_bytes(bytes(65536))
    ended = threading.Event()
    torn: list[int] = []

    def read() -> None:
        while not ended.is_set():
            seen = path.read_bytes()
            if seen not in contents:
                torn.append(len(seen))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for content in sorted(contents):
            replace_file(path, content, mode=0o644)
    finally:
        ended.set()
        reader.join()
    assert torn == []


def test_a_file_that_is_right_already_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert replace_file(path, b"x", mode=0o644)
    inode = path.stat().st_ino
    assert not replace_file(path, b"x", mode=0o644)
    assert path.stat().st_ino == inode
    assert replace_file(path, b"x", mode=0o755)
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x")
    path = tmp_path / "file"
    path.symlink_to("elsewhere")
    assert replace_file(path, b"y", mode=0o644)
    assert (path.is_symlink(), path.read_bytes(), (tmp_path / "elsewhere").read_bytes()) == (False, b"y", b"x")


def test_what_an_interrupted_try_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".file.new").write_bytes(b"half")
    replace_file(tmp_path / "file", b"whole", mode=0o644)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_replacement_leaves_nothing_new(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        replace_file(tmp_path / "file", b"x", mode=0o644)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_removing_is_idempotent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert remove_file(tmp_path / "file")
    assert not remove_file(tmp_path / "file")


def test_a_running_plugin_can_be_replaced(tmp_path: Path) -> None:
    """Writing into the file would fail with ETXTBSY."""
    source = tmp_path / "source"
    source.write_bytes(Path("/bin/sleep").read_bytes())
    target = tmp_path / "enoki"
    replace_file(target, source.read_bytes(), mode=0o755)
    with subprocess.Popen([target, "60"]) as running:
        try:
            assert replace_file(target, b"#!/bin/sh\n", mode=0o755)
        finally:
            running.kill()


def test_the_installed_plugin_is_tried(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("#!/bin/sh\n[ $CNI_COMMAND = VERSION ]\n")
    host = tmp_path / "bin"
    host.mkdir()
    assert install(source, host).endswith("enoki installed")
    assert install(source, host).endswith("enoki was up to date")
    source.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(subprocess.CalledProcessError):
        install(source, host)
