"""What `host_checks.py` judges: files, limits, modes. Blocking and read-only."""

from __future__ import annotations

import configparser
import os
import resource
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.doctor.facts import HostFacts
from agent.installation.conflist import FILE_NAME, PLUGIN, network_configuration

_NETWORKD = ("usr/lib/systemd", "lib/systemd", "run/systemd", "etc/systemd")
"""In the order in which a later one wins (networkd.conf(5))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where to look. root: of the host's files. plugin_directory: where the runtime looks for plugins."""

    socket: Path
    conf_directory: Path | None
    plugin_directory: Path
    sysctl_directory: Path
    log_directories: tuple[Path, ...]
    cni_version: str
    pod_mtu: int
    root: Path


def host_facts(places: Places, ifnames: Iterable[str]) -> HostFacts:
    """ifnames: of the ENIs' links."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files, as_ours = _conflists(places)
    socket_stat = _stat(places.socket)
    plugin = places.plugin_directory / PLUGIN
    plugin_stat = _stat(plugin)
    return HostFacts(
        sysctls=_sysctls(places.sysctl_directory, ifnames),
        networkd=networkd_settings(places.root),
        networkd_runs=_networkd_runs(places.root),
        mac_policy=mac_policy(places.root),
        nm_cloud_setup=_nm_cloud_setup(places.root),
        open_files=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names suffice
        open_files_limit=soft,
        log_disk=_fullest_disk(places.log_directories),
        socket_mode=None if socket_stat is None else socket_stat.st_mode & 0o777,
        socket_uid=None if socket_stat is None else socket_stat.st_uid,
        conf_directory=str(places.conf_directory or ""),
        conf_files=files,
        conflist_as_ours=as_ours,
        plugin=str(plugin) if places.plugin_directory.is_dir() else "",
        plugin_mode=None if plugin_stat is None else plugin_stat.st_mode,
        netns_visible=Path("/run/netns").is_dir() or Path("/var/run/netns").is_dir(),
        pod_mtu=places.pod_mtu,
    )


def networkd_settings(root: Path) -> Mapping[str, str] | None:
    """[Network] of networkd.conf with its drop-ins; None when there is none of them."""
    found: dict[str, str] = {}
    seen = False
    main = [root / directory / "networkd.conf" for directory in _NETWORKD]
    drop_ins: dict[str, Path] = {}
    for directory in _NETWORKD:
        for path in sorted((root / directory / "networkd.conf.d").glob("*.conf")):
            drop_ins[path.name] = path  # the same name in a later directory replaces it
    for path in [*main, *(drop_ins[name] for name in sorted(drop_ins))]:
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
        with suppress(OSError, configparser.Error):
            if parser.read(path):
                seen = True
                found |= dict(parser["Network"]) if parser.has_section("Network") else {}
    return found if seen else None


def mac_policy(root: Path) -> str | None:
    """MACAddressPolicy of the link file that a host veth would match; `none` when no file does, None when systemd's
    directories are not visible.
    """
    if not any((root / directory).is_dir() for directory in ("usr/lib/systemd", "lib/systemd", "etc/systemd")):
        return None
    for path in _link_files(root):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        with suppress(OSError, configparser.Error):
            parser.read(path)
            match = dict(parser["Match"]) if parser.has_section("Match") else {}
            names = match.get("OriginalName", "").split()
            everything = not match or names == ["*"]
            if everything or any(name.startswith("eni") for name in names):
                return parser.get("Link", "MACAddressPolicy", fallback="none")
    return "none"


def _link_files(root: Path) -> Iterator[Path]:
    by_name: dict[str, Path] = {}
    for directory in ("lib/systemd/network", "usr/lib/systemd/network", "run/systemd/network", "etc/systemd/network"):
        by_name |= {path.name: path for path in (root / directory).glob("*.link")}
    yield from (by_name[name] for name in sorted(by_name))


def _networkd_runs(root: Path) -> bool | None:
    """Since the host's start: systemd-networkd writes its state there, and the directory alone comes with systemd."""
    if not (root / "run/systemd/netif").is_dir():
        return None
    return (root / "run/systemd/netif/state").exists()


def _nm_cloud_setup(root: Path) -> bool | None:
    if not (root / "etc/systemd").is_dir():
        return None
    return any((root / "etc/systemd/system").glob("*.wants/nm-cloud-setup.*"))


def _conflists(places: Places) -> tuple[tuple[str, ...] | None, bool | None]:
    if places.conf_directory is None:
        return None, None
    try:
        names = tuple(sorted(path.name for path in places.conf_directory.iterdir()))
        ours = (places.conf_directory / FILE_NAME).read_bytes() if FILE_NAME in names else None
    except OSError:
        return None, None
    return names, None if ours is None else ours == network_configuration(places.cni_version)


def _sysctls(directory: Path, ifnames: Iterable[str]) -> dict[str, int]:
    links = tuple(ifnames)
    names = ["ipv4/ip_forward", "ipv4/tcp_early_demux"]
    names += [f"ipv4/conf/{link}/rp_filter" for link in ("all", *links)]
    names += [f"ipv6/conf/{link}/{key}" for link in links for key in ("accept_ra", "forwarding")]
    found: dict[str, int] = {}
    for name in names:
        with suppress(OSError, ValueError):
            found[name] = int((directory / name).read_text())
    return found


def _fullest_disk(directories: Iterable[Path]) -> tuple[str, int, int] | None:
    found = []
    for directory in directories:
        with suppress(OSError):
            usage = shutil.disk_usage(directory)
            found.append((usage.free, str(directory), usage.total))
    if not found:
        return None
    free, name, whole = min(found)
    return name, free, whole


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
