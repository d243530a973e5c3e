"""`enokictl top`: the node, live. The only part that needs textual, which is an extra: `pip install enoki[top]`."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Footer, Static

from ctl import top_view
from ctl.client import Client, Refused, Unreachable

EVERY_S = 1.0


class Top(App[None]):
    """Asks every second, in a thread; an agent that does not answer is shown as that, and asked again."""

    CSS = """
    .part { border: round $primary; height: auto; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),  # textual's own would say how to quit
        ("p", "pause", "pause"),
    ]
    TITLE = "enoki"

    def __init__(self, client: Client, every_s: float = EVERY_S) -> None:
        super().__init__()
        self._client = client
        self._every_s = every_s
        self._paused = False
        self._asking = False

    def compose(self) -> ComposeResult:
        """Six parts, one above the other."""
        with VerticalScroll():
            for name in ("node", "addresses", "troubles", "EC2", "latencies"):
                part = Static(id=name, classes="part")
                part.border_title = name
                yield part
        yield Footer()

    def on_mount(self) -> None:
        """Begin to ask."""
        self.query_one("#addresses", Static).border_subtitle = top_view.legend().plain
        self.query_one("#latencies", Static).border_subtitle = "half, and 99 of 100, were faster than"
        self.set_interval(self._every_s, self.ask)
        self.ask()

    def action_pause(self) -> None:
        """Stand still, or go on."""
        self._paused = not self._paused

    def ask(self) -> None:
        """Unless the last answers are still awaited."""
        if not self._paused and not self._asking:
            self._asking = True
            self.run_worker(self._ask, thread=True, exclusive=False)

    def _ask(self) -> None:
        try:
            answers: dict[str, Any] | str = gather(self._client)
        except (Unreachable, Refused) as exc:
            answers = str(exc)
        self.call_from_thread(self._show, answers)

    def _show(self, answers: dict[str, Any] | str) -> None:
        self._asking = False
        if isinstance(answers, str):
            self.query_one("#node", Static).update(answers)
            return
        pool, budget = answers["pool"], answers["budget"]
        shown = {
            "node": top_view.summary(answers["startup"], pool, budget),
            "addresses": top_view.strips(answers["enis"], pool),
            "troubles": top_view.troubles(pool),
            "EC2": top_view.calls(answers["plan"], budget),
            "latencies": top_view.latencies(answers["metrics"]),
        }
        for name, text in shown.items():
            self.query_one(f"#{name}", Static).update(text)


def gather(client: Client) -> dict[str, Any]:
    """One look. Raises: Unreachable, Refused."""
    startup = client.get("v1", "startup", allow=(503,))
    return {
        "startup": startup,
        "pool": client.get("v1", "pool"),
        "enis": client.get("v1", "enis"),
        "plan": client.get("v1", "pool", "plan") if startup["ready"] else None,
        "budget": client.get("v1", "budget"),
        "metrics": client.text("metrics"),
    }
