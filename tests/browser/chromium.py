"""A headless Chromium, driven by the DevTools protocol over two pipes (`--remote-debugging-pipe`).

No driver program, no port, no library: a message is one JSON object that ends with a zero byte. The browser can
therefore run in a network namespace of its own, where nothing but the tested program can be reached.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

DEADLINE_S = 30.0
"""For whatever a test waits for; reached only when it fails."""
POLL_S = 0.02
"""Between two looks at a page that says nothing by itself."""

FLAGS = (
    "--headless",
    "--no-sandbox",  # tests run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",
    "--remote-debugging-pipe",
)


def executable() -> str | None:
    """Debian's name of the program."""
    return shutil.which("chromium")


class Chromium:
    """One page of one browser. Every request that the page makes is in `requested_urls`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to_browser = to_browser
        self._from_browser = from_browser
        self._buffer = b""
        self._next_id = 1
        self._session: str | None = None
        self.requested_urls: list[str] = []
        self.errors: list[str] = []
        """Uncaught exceptions, and what the console has of errors: violations of the content security policy are."""
        target = self.call("Target.createTarget", url="about:blank")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number, self._next_id = self._next_id, self._next_id + 1
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _read(self) -> dict[str, Any]:
        until_s = time.monotonic() + DEADLINE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from_browser], [], [], until_s - time.monotonic())
            assert ready, f"the browser said nothing for {DEADLINE_S:g} s; errors so far: {self.errors}"
            chunk = os.read(self._from_browser, 1 << 20)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requested_urls.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, (expression, answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The value of an expression (true for an element) as soon as it is truthy. One that fails is not there yet."""
        guarded = (
            f"(() => {{ try {{ const it = ({expression}); return it instanceof Node ? true : it; }} catch {{}} }})()"
        )
        until_s = time.monotonic() + DEADLINE_S
        while not (value := self.evaluate(guarded)):
            assert time.monotonic() < until_s, (expression, self.evaluate("document.body.innerText"), self.errors)
            self._take_notes()
        return value

    def _take_notes(self) -> None:
        """Wait a moment for the browser to say something by itself, and note it."""
        if b"\0" in self._buffer or select.select([self._from_browser], [], [], POLL_S)[0]:
            self._note(self._read())

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def colours(self, scheme: str) -> None:
        """`light` or `dark`: what prefers-color-scheme says."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str, *, code: int) -> None:
        """One key, by its DOM name and its Windows virtual key code."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium(*, inside: Sequence[str] = ()) -> Iterator[Chromium]:
    """A fresh browser; inside: a command that runs another, such as nsenter with its arguments."""
    program = executable()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="enoki-chromium-", ignore_cleanup_errors=True) as profile:
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        argv = [*inside, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads commands from descriptor 3 and answers on 4.
        shell = f'exec "$@" 3<&{down_read} 4>&{up_write} 2>/dev/null'
        child = subprocess.Popen(
            ["/bin/bash", "-c", shell, "bash", *argv],
            pass_fds=(down_read, up_write),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": profile, "LANG": "C.UTF-8"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        os.close(down_read)
        os.close(up_write)
        try:
            yield Chromium(down_write, up_read)
        finally:
            os.close(down_write)
            os.close(up_read)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(timeout=DEADLINE_S)
