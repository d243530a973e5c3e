"""Tells whoever started the agent that it is ready: the protocol of sd_notify(3), without its library."""

from __future__ import annotations

import socket


def notify_ready(address: str) -> None:
    """Send READY=1 to a datagram socket.

    address: the value of NOTIFY_SOCKET; a leading @ means the abstract namespace.
    An empty address means that nobody asked. Raises: OSError when nobody listens there.
    """
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(b"READY=1")
