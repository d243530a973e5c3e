"""A network namespace with nothing but loopback, where one port leads to the same port of a node.

A browser in it reaches the tested program and nothing else, whatever it tries. (In the node's own namespace Chromium
would break its connections off whenever a pod's link comes: "network changed".)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

from agent.datapath.namespaces import inside, opened
from lab.pods import delete_namespace, make_namespace

DEADLINE_S = 30.0


@contextmanager
def loopback_namespace(name: str, *, node_netns: str, port: int) -> Iterator[None]:
    """Make the namespace `name`; its 127.0.0.1:port is the node's, as long as this is open."""
    make_namespace(name)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=DEADLINE_S)
        with opened(f"/run/netns/{name}") as here, opened(node_netns) as there, _relay(here, there, port):
            yield
    finally:
        delete_namespace(name)


@contextmanager
def _relay(here: int, there: int, port: int) -> Iterator[None]:
    # A socket belongs to the namespace it was made in, whatever thread uses it.
    with inside(here):
        listening = socket.create_server(("127.0.0.1", port))
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(_serve(listening, there, port, stop),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        loop.close()


async def _serve(listening: socket.socket, there: int, port: int, stop: asyncio.Event) -> None:
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            with inside(there):
                beyond = socket.socket()
            beyond.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(beyond, ("127.0.0.1", port))
            except OSError:
                beyond.close()
                return
            far_reader, far_writer = await asyncio.open_connection(sock=beyond)
            try:
                await _first_of(_pump(reader, far_writer), _pump(far_reader, writer))
            finally:
                far_writer.close()
        finally:
            writer.close()
            connections.discard(task)

    async with await asyncio.start_server(connected, sock=listening):
        await stop.wait()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _first_of(*pumps: Coroutine[None, None, None]) -> None:
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
