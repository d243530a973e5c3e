"""The loop's step: look at the node and at the directory, and make the network configuration be there, or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError, Cause, KernelFailed
from agent.installation.conflist import FILE_NAME, ahead_of_ours, network_configuration
from agent.installation.files import remove_file, replace_file
from agent.installation.verdict import START_GRACE_S, Situation, Wish, decide
from agent.runtime.log import event_logger

log = event_logger(__name__)

RECHECK_S = 10.0
"""How soon a file that somebody removed or changed is back: a look costs a read of a few hundred bytes."""
SOON_S = 1.0
"""How soon to look again while the file is not there: a node that becomes able to serve is ready that much later."""
TURN_S = 30.0
"""The longest turn: two fsyncs on a busy disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationPolicy:
    """directory: the runtime's configuration directory; None: nothing is published.

    cni_version: see `network_configuration`.
    """

    directory: Path | None = None
    cni_version: str = "1.0.0"


class Publisher:
    """Holds the file to `decide`. `step` is the step of a `Reconciler` that turns from the agent's first moment on."""

    def __init__(
        self,
        policy: InstallationPolicy,
        *,
        started: Callable[[], bool],
        has_addresses: Callable[[], bool],
        unavailable: Callable[[], AgentError | None],
        pod_count: Callable[[], Awaitable[int]],
        clock: Callable[[], float],
    ) -> None:
        """started: the start is done. unavailable: why a started node serves no pod. pod_count: asks the kernel.

        clock: monotonic seconds.
        """
        self._policy = policy
        self._started = started
        self._has_addresses = has_addresses
        self._unavailable = unavailable
        self._pod_count = pod_count
        self._clock = clock
        self._stage = (False, clock())
        self._ahead: list[str] = []

    async def step(self) -> float:
        """One turn; seconds until the next. Raises: KernelFailed when the file cannot be written or removed."""
        directory = self._policy.directory
        if directory is None:
            return float("inf")
        try:
            return await self._hold(directory)
        except OSError as exc:
            raise KernelFailed(
                Cause.HOST_FILE_REFUSED,
                f"cannot keep {FILE_NAME} in {directory}: {exc.strerror or exc}",
                remedy="mount the host's CNI configuration directory writable at HOST_CNI_CONFDIR_PATH",
            ) from exc

    async def _hold(self, directory: Path) -> float:
        path = directory / FILE_NAME
        trouble = self._unavailable() if self._started() else None
        match decide(await self._situation(path, trouble)):
            case Wish.PUBLISH:
                content = network_configuration(self._policy.cni_version)
                if await asyncio.to_thread(replace_file, path, content, mode=0o644):
                    log.info("network_configuration_published", path=str(path))
                self._tell_what_is_ahead(directory)
                return RECHECK_S
            case Wish.WITHDRAW:
                if await asyncio.to_thread(remove_file, path):
                    log.warning("network_configuration_withdrawn", path=str(path), reason=str(trouble or "not started"))
            case Wish.LEAVE:
                pass
        return SOON_S

    async def _situation(self, path: Path, trouble: AgentError | None) -> Situation:
        started, now_s = self._started(), self._clock()
        if self._stage[0] is not started:
            self._stage = (started, now_s)
        stage_s = now_s - self._stage[1]
        must_look = not started and stage_s > START_GRACE_S
        return Situation(
            started=started,
            has_addresses=self._has_addresses(),
            trouble=str(trouble or ""),
            from_before_boot=not started and written_before(path, boot_time_s()),
            stage_s=stage_s,
            pod_count=await self._pod_count() if must_look else None,
        )

    def _tell_what_is_ahead(self, directory: Path) -> None:
        """Once per change: another plugin's file that the runtime takes instead of ours. It is not ours to remove."""
        ahead = ahead_of_ours(path.name for path in directory.iterdir())
        if ahead != self._ahead and ahead:
            log.warning("network_configuration_behind_another", ahead=", ".join(ahead), ours=FILE_NAME)
        self._ahead = ahead


def written_before(path: Path, moment_s: float) -> bool:
    """Whether the file's content is older than a moment (seconds since the epoch). False without a file."""
    try:
        return path.stat().st_mtime < moment_s
    except FileNotFoundError:
        return False


def boot_time_s(stat: Path = Path("/proc/stat")) -> float:
    """When the node booted, in seconds since the epoch (proc(5), /proc/stat, `btime`)."""
    for line in stat.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "btime":
            return float(value)
    return 0.0
