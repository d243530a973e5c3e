"""Work that outlives its request, and the word that the agent is ready."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from agent.runtime.notify import notify_ready
from agent.runtime.transactions import Transactions
from tests.virtual_time import run_virtual


def test_a_dying_request_does_not_cut_its_transaction() -> None:
    done: list[str] = []

    async def change() -> None:
        await asyncio.sleep(5.0)
        done.append("changed")

    async def main() -> None:
        transactions = Transactions()
        request = asyncio.create_task(_shielded(transactions, change()))
        await asyncio.sleep(1.0)
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request
        assert (done, len(transactions)) == ([], 1)
        assert await transactions.drain(10.0) == 0
        assert (done, len(transactions)) == (["changed"], 0)

    run_virtual(main())


async def _shielded(transactions: Transactions, change: object) -> None:
    assert asyncio.iscoroutine(change)
    await asyncio.shield(transactions.begin(change, name="change"))


def test_drain_has_a_deadline_and_counts_what_is_left() -> None:
    async def main() -> None:
        transactions = Transactions()
        task = transactions.begin(asyncio.sleep(100.0), name="long")
        assert await transactions.drain(1.0) == 1
        task.cancel()
        assert await transactions.drain(1.0) == 0

    run_virtual(main())


def test_the_failure_of_a_transaction_reaches_who_waits() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        await Transactions().begin(broken(), name="broken")

    with pytest.raises(ZeroDivisionError):
        run_virtual(main())


@pytest.mark.parametrize("abstract", ["", "@"])
def test_ready_is_told_to_who_asked(tmp_path: Path, abstract: str) -> None:
    name = f"{abstract}{tmp_path}/ready.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.settimeout(1.0)
        notify_ready(name)
        assert listener.recv(100) == b"READY=1"


def test_nobody_asked() -> None:
    notify_ready("")
