"""`enokictl`: ask the agent of this node.

Exit codes: 0 all is well; 1 the answer says that something is not; 2 wrong usage; 3 no agent answers; 4 the agent does
not know what was asked for, or does not allow it; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from ctl import commands
from ctl.client import Client, Refused, Unreachable
from ctl.completion import FORMS, script, words_of

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as a shell counts."""

_EXITS = "exit codes: 0 well, 1 not well, 2 usage, 3 no agent, 4 unknown or not allowed, 130 interrupted"


def parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The command line, and the parser of each command."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("-o", "--output", choices=FORMS, default="table", help="form of the answer")
    shared.add_argument("--socket", metavar="PATH", help="the agent's socket (default: ENOKI_SOCKET, or the agent's)")
    top = argparse.ArgumentParser(
        prog="enokictl", description="Ask the network agent of this node.", epilog=_EXITS, allow_abbrev=False
    )
    made: dict[str, argparse.ArgumentParser] = {}
    under = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, words: str) -> argparse.ArgumentParser:
        made[name] = under.add_parser(
            name, help=words, description=words, epilog=_EXITS, parents=[shared], allow_abbrev=False
        )
        return made[name]

    add("status", "whether this node can serve pods")
    add("pods", "who holds which address")
    add("enis", "the network interfaces of this node")
    add("pool", "every address and its state")
    add("plan", "what the pool would do now, and why")
    explain = add("explain", "why a pod, or the node, is as it is")
    explain.add_argument(
        "subject", type=commands.pod_or_node, metavar="NAMESPACE/POD|node", help="without a namespace: default"
    )
    doctor = add("doctor", "read-only checks of the node, EC2, IMDS and Kubernetes, each with what to do")
    doctor.add_argument("--unwell", action="store_true", help="only what is not ok")
    add("adopt", "what taking this node over from aws-node would do, and how to do it")
    bundle = add("support-bundle", "gather what somebody else needs to help, with secrets left out")
    bundle.add_argument("--file", type=Path, metavar="PATH", help="the archive (default: enoki-HOST-TIME.tar.gz here)")
    bundle.add_argument("--api-only", action="store_true", help="only what the agent says; no command is run")
    add("top", "the node, live (needs textual)")
    events = add("events", "what happened; with --follow, what happens")
    events.add_argument("-f", "--follow", action="store_true", help="go on until interrupted")
    events.add_argument("--after", type=int, metavar="ID", help="begin after this event; 0 is the oldest known")
    add("budget", "requests to EC2 by action and outcome")
    config = add("config", "the settings in force and where they come from")
    config.add_argument("--changed", action="store_true", help="only what is not the default")
    trace = add("trace", "where a packet of a pod to an address goes")
    trace.add_argument("pod", type=commands.pod_name, metavar="NAMESPACE/POD", help="without a namespace: default")
    trace.add_argument("to", metavar="ADDRESS", help="of a pod, a node or anything else; no name")
    history = add("history", "who held an address, and when")
    history.add_argument("address", metavar="ADDRESS", help="of a pod")
    logs = add("logs", "the agent's latest log lines; of one pod with --pod")
    logs.add_argument("--pod", type=commands.pod_name, metavar="NAMESPACE/POD", help="one pod's story")
    logs.add_argument("--request-id", metavar="ID", help="one CNI call's story; enokictl events and errors show ids")
    logs.add_argument("-n", "--lines", type=int, default=200, help="the most lines (default: 200)")
    level = add("log-level", "show, or change until the agent stops, what is logged")
    level.add_argument("level", nargs="?", choices=["debug", "info", "warning", "error"])
    completion = add("completion", "print a completion script")
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])
    return top, made


_ANSWERS: dict[str, Callable[[Client, argparse.Namespace], commands.Answer]] = {
    "status": commands.status,
    "pods": commands.pods,
    "enis": commands.enis,
    "pool": commands.pool,
    "plan": commands.plan,
    "explain": commands.explain,
    "doctor": commands.doctor,
    "adopt": commands.adopt,
    "budget": commands.budget,
    "config": commands.config,
    "trace": commands.trace,
    "history": commands.history,
    "logs": commands.logs,
    "log-level": commands.log_level,
}


def main(argv: list[str] | None = None) -> int:
    """Entry point; the exit code."""
    top, made = parser()
    arguments = top.parse_args(argv)
    try:
        if arguments.command == "completion":
            sys.stdout.write(script(arguments.shell, made, [word for word in words_of(top) if word.startswith("--")]))
            return commands.EXIT_OK
        client = Client(arguments.socket)
        if arguments.command == "support-bundle":
            return commands.support_bundle(client, arguments)
        if arguments.command == "top":
            return commands.top(client)
        if arguments.command == "events":
            return commands.events(client, arguments)
        return commands.give(_ANSWERS[arguments.command](client, arguments), arguments.output)
    except Unreachable as exc:
        sys.stderr.write(f"enokictl: {exc}\n")
        return commands.EXIT_UNREACHABLE
    except Refused as exc:
        sys.stderr.write(f"enokictl: {exc}\n")
        return commands.EXIT_USAGE if exc.status == HTTPStatus.UNPROCESSABLE_ENTITY else commands.EXIT_REFUSED
    except BrokenPipeError:
        # The reader (`head`) has seen enough. Nothing more may be written, not even at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return commands.EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
