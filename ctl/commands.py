"""What each command asks, and how it shows the answer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ctl.client import Client
from ctl.output import as_json, as_yaml

EXIT_OK = 0
EXIT_UNWELL = 1
"""The answer says that something is not as it should be."""
EXIT_USAGE = 2
"""Also when the agent says that a parameter is malformed (422)."""
EXIT_UNREACHABLE = 3
EXIT_REFUSED = 4
"""The agent does not know what was asked for, or does not allow it."""


DOCTOR_S = 120.0
"""Some seconds; more when EC2 hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command found. show: prints it for people. code: the exit code."""

    value: Any
    show: Callable[[], None]
    code: int = EXIT_OK


def give(answer: Answer, output: str) -> int:
    """Print in the form that was asked for; the exit code."""
    match output:
        case "json":
            sys.stdout.write(as_json(answer.value))
        case "yaml":
            sys.stdout.write(as_yaml(answer.value))
        case _:
            answer.show()
    return answer.code


def _print(*parts: Any) -> None:
    from rich.tree import Tree  # noqa: PLC0415 - programs that read JSON do not wait for it

    from ctl.tables import console  # noqa: PLC0415

    out = console()
    for part in parts:
        out.print(part, soft_wrap=not isinstance(part, Tree))


def status(client: Client, _: argparse.Namespace) -> Answer:
    startup = client.get("v1", "startup", allow=(503,))
    health = client.get("v1", "health", allow=(503,))
    pool, enis, budget = client.get("v1", "pool"), client.get("v1", "enis"), client.get("v1", "budget")
    well = startup["ready"] and not pool["conditions"] and all(loop["healthy"] for loop in health["loops"])
    value = {"startup": startup, "health": health, "pool": pool, "enis": enis, "budget": budget}

    def show() -> None:
        from ctl.tables import facts, table  # noqa: PLC0415

        counts = pool["counts"]
        waits = [
            f"{one['name']} is {one['state']} {one['reason']}" for one in startup["stages"] if one["state"] != "done"
        ]
        _print(
            facts(
                [
                    ("agent", "ready" if startup["ready"] else f"starting: {waits[0] if waits else ''}"),
                    ("pods", counts["held_count"]),
                    ("free", counts["free_count"]),
                    ("cooling", counts["cooling_count"]),
                    ("quarantined", counts["quarantined_count"]),
                    ("waiting", pool["waiter_count"]),
                    ("ENIs", len(enis)),
                    ("EC2 calls", f"{budget['call_count']}, {budget['throttled_count']} throttled"),
                    ("pool", pool["reason"]),
                ]
            )
        )
        if pool["conditions"]:
            rows = [(one["cause"], one["message"], one["remedy"]) for one in pool["conditions"]]
            _print("", table(["CAUSE", "MESSAGE", "REMEDY"], rows))

    return Answer(value=value, show=show, code=EXIT_OK if well else EXIT_UNWELL)


def pods(client: Client, _: argparse.Namespace) -> Answer:
    value = client.get("v1", "allocations")

    def show() -> None:
        from ctl.tables import short_time, table  # noqa: PLC0415

        rows = [
            (
                one["namespace"],
                one["pod"],
                one["addresses"],
                one["eni_id"],
                one["host_ifname"],
                one["container_id"][:13],
                short_time(one["since"]),
            )
            for one in value
        ]
        _print(table(["NAMESPACE", "POD", "ADDRESSES", "ENI", "LINK", "CONTAINER", "SINCE"], rows))

    return Answer(value=value, show=show)


def enis(client: Client, _: argparse.Namespace) -> Answer:
    value = client.get("v1", "enis")

    def show() -> None:
        from ctl.tables import table  # noqa: PLC0415

        columns = ["ENI", "CARD", "DEVICE", "ADDRESS", "SUBNET", "TABLE", "OURS", "SLOTS", "BLOCKS", "HELD", "FREE"]
        rows = [
            (
                one["eni_id"],
                one["card"],
                one["device"],
                one["primary_address"],
                one["subnet_id"],
                one["table_id"],
                one["managed"],
                one["slot_count"],
                len(one["blocks"]),
                one["counts"]["held_count"],
                one["counts"]["free_count"],
            )
            for one in value
        ]
        _print(table(columns, rows))

    return Answer(value=value, show=show)


def pool(client: Client, _: argparse.Namespace) -> Answer:
    value = client.get("v1", "pool")

    def show() -> None:
        from ctl.tables import facts, table  # noqa: PLC0415

        rows = [(eni["eni_id"], one["address"], one["state"]) for eni in value["enis"] for one in eni["addresses"]]
        counts = [(name.removesuffix("_count"), count) for name, count in value["counts"].items()]
        _print(facts([*counts, ("waiting", value["waiter_count"]), ("reason", value["reason"])]), "")
        _print(table(["ENI", "ADDRESS", "STATE"], rows))

    return Answer(value=value, show=show)


def plan(client: Client, _: argparse.Namespace) -> Answer:
    value = client.get("v1", "pool", "plan")

    def show() -> None:
        from ctl.tables import facts, pairs, table  # noqa: PLC0415

        when = value["recheck_after_s"]
        again = "when something happens" if when is None else f"in {when:.0f} s, or when something happens"
        _print(facts([("reason", value["reason"]), ("short of", value["short_count"]), ("looks again", again)]), "")
        rows = [
            (state, one["action"], pairs(one["arguments"]), one["reason"])
            for state, actions in (("would start", value["actions"]), ("under way", value["in_flight"]))
            for one in actions
        ]
        _print(table(["WHEN", "ACTION", "ON", "WHY"], rows) if rows else "nothing to do")

    return Answer(value=value, show=show)


def explain(client: Client, arguments: argparse.Namespace) -> Answer:
    subject = ("node",) if arguments.subject == "node" else ("pods", *arguments.subject)
    value = client.get("v1", "explain", *subject)

    def show() -> None:
        from ctl.tables import step_tree  # noqa: PLC0415

        _print(step_tree(value))
        if value["events"]:
            _print("", _event_table(value["events"]))

    return Answer(value=value, show=show, code=EXIT_OK if value["state"] == "ok" else EXIT_UNWELL)


def doctor(client: Client, arguments: argparse.Namespace) -> Answer:
    value = client.get("v1", "doctor", timeout_s=DOCTOR_S)
    if arguments.unwell:
        value = {**value, "checks": [one for one in value["checks"] if one["verdict"] in {"failing", "warning"}]}

    def show() -> None:
        from ctl.tables import findings  # noqa: PLC0415

        _print(findings(value["checks"]) if value["checks"] else "every check that could be made is ok")

    return Answer(value=value, show=show, code=EXIT_OK if value["verdict"] in {"ok", "skipped"} else EXIT_UNWELL)


def adopt(client: Client, _: argparse.Namespace) -> Answer:
    value = client.get("v1", "adoption", timeout_s=DOCTOR_S)

    def show() -> None:
        for one in value["refusals"]:
            _print(f"refused: {one}")
        if value["possible"]:
            sys.stdout.write(value["script"])
        _print("", "the agent cannot do it to itself; on the node:")
        for one in value["next_steps"]:
            _print(f"  {one}")

    return Answer(value=value, show=show, code=EXIT_OK if value["possible"] else EXIT_UNWELL)


def support_bundle(client: Client, arguments: argparse.Namespace) -> int:
    """Writes a file; its path on standard output."""
    from ctl import bundle  # noqa: PLC0415

    try:
        made = bundle.write(client, arguments.file, on_node=not arguments.api_only, said=bundle.to_stderr)
    except OSError as exc:
        sys.stderr.write(f"enokictl: {exc}\n")
        return EXIT_UNWELL
    sys.stdout.write(f"{made}\n")
    return EXIT_OK


def top(client: Client) -> int:
    """Until somebody quits."""
    try:
        from ctl.top import Top  # noqa: PLC0415
    except ModuleNotFoundError:
        sys.stderr.write("enokictl: top needs textual, which is not in the agent's image: pip install 'enoki[top]'\n")
        return EXIT_USAGE
    Top(client).run()
    return EXIT_OK


def budget(client: Client, _: argparse.Namespace) -> Answer:
    value = client.get("v1", "budget")

    def show() -> None:
        from ctl.tables import short_time, table  # noqa: PLC0415

        rows = [
            (one["action"], call["reason"], call["outcome"], call["count"], f"{one['rate_per_s']:g}/s")
            for one in value["actions"]
            for call in one["calls"]
        ]
        _print(f"{value['call_count']} requests to EC2 since {short_time(value['since'])}", "")
        _print(table(["ACTION", "REASON", "OUTCOME", "COUNT", "ALLOWED"], rows))

    return Answer(value=value, show=show)


def config(client: Client, arguments: argparse.Namespace) -> Answer:
    value = client.get("v1", "config")
    if arguments.changed:
        value = {**value, "settings": [one for one in value["settings"] if one["provenance"] != "default"]}

    def show() -> None:
        from ctl.tables import table  # noqa: PLC0415

        rows = [(one["name"], one["value"], one["provenance"], one["default"]) for one in value["settings"]]
        _print(table(["SETTING", "VALUE", "FROM", "DEFAULT"], rows), *value["notices"])

    return Answer(value=value, show=show)


def trace(client: Client, arguments: argparse.Namespace) -> Answer:
    namespace, pod = arguments.pod
    value = client.get("v1", "trace", namespace=namespace, pod=pod, to=arguments.to)

    def show() -> None:
        from ctl.tables import facts  # noqa: PLC0415

        marks = f"{value['mark']:#x}" + "".join(f"; {reason}" for reason in value["mark_reasons"])
        _print(
            facts(
                [
                    ("from", f"{namespace}/{pod} {value['source']} by {value['host_ifname']}"),
                    ("to", f"{value['destination']} ({value['reaches']})"),
                    ("mark", marks),
                    ("rule", value["rule"]),
                    ("table", value["table_id"]),
                    ("route", value["refusal"] or value["route_type"]),
                    ("out", value["out_ifname"]),
                    ("gateway", value["gateway"]),
                    ("ENI", value["eni_id"]),
                    ("source NAT", value["translated_to"] or "none"),
                    ("verdict", value["verdict"]),
                ]
            )
        )

    return Answer(value=value, show=show, code=EXIT_UNWELL if value["refusal"] else EXIT_OK)


def history(client: Client, arguments: argparse.Namespace) -> Answer:
    value = client.get("v1", "history", address=arguments.address)

    def show() -> None:
        from ctl.tables import short_time, table  # noqa: PLC0415

        rows = [
            (
                one["namespace"],
                one["pod"],
                one["container_id"][:13],
                short_time(one["since"]),
                ("" if one["known_end"] else "before ") + (short_time(one["until"]) or "now"),
            )
            for one in value["tenures"]
        ]
        if rows:
            _print(table(["NAMESPACE", "POD", "CONTAINER", "SINCE", "UNTIL"], rows))
        else:
            _print(f"no pod of this node is known to have held {value['address']}")
        _print(f"remembered since {short_time(value['remembered_since']) or 'never'}")

    return Answer(value=value, show=show)


def logs(client: Client, arguments: argparse.Namespace) -> Answer:
    namespace, pod = arguments.pod or (None, None)
    value = client.get(
        "v1", "logs", namespace=namespace, pod=pod, request_id=arguments.request_id, limit=arguments.lines
    )

    def show() -> None:
        from ctl.tables import log_line, short_time  # noqa: PLC0415

        _print(*(log_line(line) for line in value["lines"]))
        if not value["lines"]:
            _print(f"no such line since {short_time(value['remembered_since']) or 'the agent began'}")

    return Answer(value=value, show=show)


def log_level(client: Client, arguments: argparse.Namespace) -> Answer:
    if arguments.level is None:
        value = client.get("v1", "log-level")
    else:
        value = client.put("v1", "log-level", body={"level": arguments.level})
    return Answer(value=value, show=lambda: _print(value["level"]))


def events(client: Client, arguments: argparse.Namespace) -> int:
    """As they come: one line each, whatever the form."""
    after = arguments.after
    if after is None and not arguments.follow:
        after = 0
    for one in client.events(after=after, follow=arguments.follow):
        if arguments.output == "json":
            sys.stdout.write(json.dumps({"name": one.name, **one.data}) + "\n")
        elif arguments.output == "yaml":
            sys.stdout.write(f"---\n{as_yaml({'name': one.name, **one.data})}")
        elif one.name == "missed":
            sys.stderr.write("enokictl: some events in between are not known any more\n")
        else:
            _print(_event_line(one.data))
        sys.stdout.flush()
    return EXIT_OK


def _event_table(shown: list[dict[str, Any]]) -> Any:
    from ctl.tables import pairs, short_time, table  # noqa: PLC0415

    rows = [(short_time(one["at"]), one["kind"], one["request_id"], pairs(one["fields"])) for one in shown]
    return table(["AT", "KIND", "REQUEST", "WHAT"], rows)


def _event_line(event: dict[str, Any]) -> Any:
    from ctl.tables import cell, pairs, short_time  # noqa: PLC0415

    return cell(f"{short_time(event['at'])} {event['kind']:<14} {pairs(event['fields'])}")


def pod_name(text: str) -> tuple[str, str]:
    """`namespace/pod`, or `pod` in namespace default. Raises: argparse.ArgumentTypeError when it is neither."""
    namespace, slash, pod = text.rpartition("/")
    if not pod or (slash and not namespace) or "/" in namespace:
        raise argparse.ArgumentTypeError(f'"{text}" is no pod; write namespace/pod, or pod for namespace default')
    return namespace or "default", pod


def pod_or_node(text: str) -> tuple[str, str] | str:
    """As `pod_name`, or `node` itself; a pod of that name is `default/node`."""
    return text if text == "node" else pod_name(text)
