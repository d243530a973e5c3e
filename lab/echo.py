"""A line echo over TCP that first says whom it sees: the oracle for "with which source did the packets arrive".

python -m lab.echo serve PORT           in the server's namespace; prints `listening`
python -m lab.echo hold ADDRESS PORT    in the client's; prints the greeting, then one answer per line of stdin
"""

from __future__ import annotations

import socket
import subprocess
import sys
from types import TracebackType

PORT = 8080
TIMEOUT_S = 5.0


class Running:
    """An echo server or a held connection in another namespace; ends with its `with` block."""

    def __init__(self, netns: str, *arguments: str) -> None:
        self._child = subprocess.Popen(
            ["nsenter", f"--net={netns}", "--", sys.executable, "-I", __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.greeting = self._line()

    def ask(self, line: str) -> str:
        """Send a line through the open connection; what came back, or an empty string when it is broken."""
        if self._child.stdin is None or self._child.poll() is not None:
            return ""
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()
        return self._line()

    def _line(self) -> str:
        return self._child.stdout.readline().strip() if self._child.stdout else ""

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def serve(port: int) -> None:
    """One thread a connection would do; a select loop is as short and needs none."""
    import selectors  # noqa: PLC0415  (the client side, which starts often, does without)

    selector = selectors.DefaultSelector()
    listener = socket.create_server(("0.0.0.0", port), backlog=128)
    selector.register(listener, selectors.EVENT_READ)
    print("listening", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, peer = listener.accept()
                connection.sendall(f"{peer[0]}\n".encode())
                selector.register(connection, selectors.EVENT_READ)
            else:
                _echo(selector, key.fileobj)


def _echo(selector: object, connection: object) -> None:
    import selectors  # noqa: PLC0415

    assert isinstance(connection, socket.socket)  # noqa: S101
    assert isinstance(selector, selectors.BaseSelector)  # noqa: S101
    try:
        data = connection.recv(65536)
        if data:
            connection.sendall(data)
            return
    except OSError:
        pass  # the client is gone; so is the connection
    selector.unregister(connection)
    connection.close()


def hold(address: str, port: int) -> None:
    """Connect, print the greeting, then pass lines of stdin through the one connection."""
    with socket.create_connection((address, port), timeout=TIMEOUT_S) as connection:
        stream = connection.makefile("rw")
        print(stream.readline(), end="", flush=True)
        for line in sys.stdin:
            stream.write(line)
            stream.flush()
            print(stream.readline(), end="", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        hold(sys.argv[2], int(sys.argv[3]))
