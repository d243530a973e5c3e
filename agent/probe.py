"""What the kubelet executes to ask the agent how it is: `python -m agent.probe /v1/health`. Standard library only.

The API is on a Unix socket, which a kubelet's HTTP probe cannot reach. Exit codes: 0 for a 2xx answer, 1 otherwise,
with the answer on standard output, where `kubectl describe pod` shows it.
"""

from __future__ import annotations

import os
import socket
import sys

TIMEOUT_S = 4.0
"""Below the probe's own, so that what is printed says why."""
DEFAULT_SOCKET = "/run/enoki/agent.sock"


def ask(path: str, route: str) -> tuple[bool, str]:
    """(answered with 2xx, the body or what went wrong)."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(path)
            sock.sendall(f"GET {route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            reply = b"".join(iter(lambda: sock.recv(65536), b""))
    except OSError as error:
        return False, f"{path}: {error}"
    head, _, body = reply.partition(b"\r\n\r\n")
    return head[9:10] == b"2", body.decode(errors="replace") or head.decode(errors="replace")


def main() -> int:
    """Ask for the route of the first argument."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m agent.probe /v1/health|/v1/startup\n")
        return 2
    good, words = ask(os.environ.get("ENOKI_SOCKET") or DEFAULT_SOCKET, sys.argv[1])  # noqa: TID251  # an entry point
    sys.stdout.write(words + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
