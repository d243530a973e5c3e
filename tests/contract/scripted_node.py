"""A node agent that does what a test tells it, behind the real routes and the real socket server.

In this process: `with running(node, path)`. As a process: `python -m tests.contract.scripted_node PATH`, which
prints `ready`, then one line per event, holds each ADD until it reads a line, and stops on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from agent.runtime.door import hold_socket
from agent.runtime.socket_server import serve
from api.app import create_app
from api.problems import CniCode, CniError
from api.schemas import (
    Address,
    AddressCounts,
    AllocationView,
    ConditionView,
    EniView,
    HealthView,
    LoopView,
    PoolEniView,
    PoolView,
    StageState,
    StageView,
    StartupView,
)
from api.service import AddResult, Attachment, CniCall, NodeService, RefusedCall
from tests.contract.scripted_operators import AT, ScriptedOperators

WAIT_S = 60.0
"""For whatever a test waits for; reached only when it fails."""

COUNTS = AddressCounts(free_count=4, held_count=1)
ALLOCATION = AllocationView(
    addresses=[IPv4Address("10.0.1.9")],
    eni_id="eni-0123456789abcdef0",
    container_id="c1",
    ifname="eth0",
    namespace="default",
    pod="web-0",
    host_ifname="eni2b7c0f3a1d4",
    since=AT,
)


class ScriptedNode(ScriptedOperators):
    """Records every call; fails with `failure` when that is set; parks ADD while `hold_adds` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[CniCall] = []
        self.refusals: list[tuple[RefusedCall, str, str]] = []
        self.valid: frozenset[Attachment] = frozenset()
        self.failure: Exception | None = None
        self.hold_adds = False
        self.release = asyncio.Event()
        self.add_arrived = threading.Event()
        self.add_cancelled = threading.Event()
        self.healthy = True
        self.ready = True

    def _record(self, call: CniCall) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure

    def refused(self, call: RefusedCall, cause: str, message: str) -> None:
        self.refusals.append((call, cause, message))

    async def add(self, call: CniCall) -> AddResult:
        self._record(call)
        self.add_arrived.set()
        if self.hold_adds:
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.add_cancelled.set()
                raise
        return AddResult(
            host_ifname="eni2b7c0f3a1d4",
            host_mac="02:00:0a:00:01:09",
            pod_mac="06:00:0a:00:01:09",
            netns=call.netns,
            ifname=call.ifname,
            addresses=(IPv4Address("10.0.1.9"),),
            mtu=9001 if call.mtu is None else call.mtu,
        )

    async def delete(self, call: CniCall) -> None:
        self._record(call)

    async def check(self, call: CniCall) -> None:
        self._record(call)

    async def status(self, call: CniCall) -> None:
        self._record(call)
        if not self.ready:
            raise CniError(CniCode.NOT_AVAILABLE, "agent_starting: the kernel has not been read yet")

    async def gc(self, call: CniCall, valid: frozenset[Attachment]) -> None:
        self._record(call)
        self.valid = valid

    def pool(self) -> PoolView:
        condition = ConditionView(cause="subnet_exhausted", message="subnet-0a1b has no free address")
        eni = PoolEniView(eni_id=ALLOCATION.eni_id, counts=COUNTS, addresses=[])
        return PoolView(counts=COUNTS, waiter_count=0, enis=[eni], conditions=[condition])

    def enis(self) -> list[EniView]:
        return [
            EniView(
                eni_id=ALLOCATION.eni_id,
                mac="0e:00:0a:00:01:05",
                card=0,
                device=0,
                subnet_id="subnet-0123456789abcdef0",
                subnet_cidr=IPv4Network("10.0.1.0/24"),
                primary_address=IPv4Address("10.0.1.5"),
                table_id=254,
                managed=True,
                slot_count=29,
                blocks=[IPv4Network("10.0.1.9/32"), IPv4Network("10.0.1.16/28")],
                counts=COUNTS,
            )
        ]

    def allocations(
        self, *, namespace: str | None = None, pod: str | None = None, address: Address | None = None
    ) -> list[AllocationView]:
        matches = (
            namespace in {None, ALLOCATION.namespace}
            and pod in {None, ALLOCATION.pod}
            and (address is None or address in ALLOCATION.addresses)
        )
        return [ALLOCATION] if matches else []

    def eni_config(self) -> str | None:
        return None

    def health(self) -> HealthView:
        loop = LoopView(name="pool", healthy=self.healthy, seconds_since_good_turn_s=1.5)
        return HealthView(healthy=self.healthy, loops=[loop])

    def startup(self) -> StartupView:
        state = StageState.DONE if self.ready else StageState.RUNNING
        return StartupView(ready=self.ready, stages=[StageView(name="recover", state=state)])


@contextmanager
def running(node: NodeService, path: Path) -> Iterator[None]:
    """Serve `node` on `path` from a thread of its own, so that a test may block on processes."""
    listening = threading.Event()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def main() -> None:
        async with hold_socket(path) as sock:
            task = asyncio.create_task(serve(create_app(node), sock, drain_s=1.0))
            handles.append((asyncio.get_running_loop(), task))
            await listens(path)
            listening.set()
            with suppress(asyncio.CancelledError):
                await task

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert listening.wait(WAIT_S)
        yield
    finally:
        loop, task = handles[0]
        loop.call_soon_threadsafe(task.cancel)
        thread.join(WAIT_S)
        assert not thread.is_alive()


async def listens(path: Path) -> None:
    """Return as soon as somebody listens on `path`."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_unix_connection(path)
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(0)


def _say(event: str) -> None:
    sys.stdout.write(f"{event}\n")
    sys.stdout.flush()


class _TalkingNode(ScriptedNode):
    async def add(self, call: CniCall) -> AddResult:
        _say("add")
        return await super().add(call)


async def _process(path: Path) -> None:
    node = _TalkingNode()
    node.hold_adds = True
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, node.release.set)
    async with hold_socket(path) as sock:
        task = asyncio.create_task(serve(create_app(node), sock))

        def stop() -> None:
            task.cancel()
            _say("stopping")

        loop.add_signal_handler(signal.SIGTERM, stop)
        await listens(path)
        _say("ready")
        with suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    asyncio.run(_process(Path(sys.argv[1])))
