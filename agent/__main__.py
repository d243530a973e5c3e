"""Settings -> door -> everything else. `python -m agent`.

The door opens before the agent's libraries are imported, which takes most of a start: whoever calls meanwhile waits in
the socket's backlog instead of being told that there is no agent.

`--dev-http 127.0.0.1:8080` is ENOKI_DEV_HTTP on the command line, `--dev-http-allow` is ENOKI_DEV_HTTP_ALLOW.

`python -m agent adopt` takes a node over from the AWS plugin, or gives it back: see `agent/adoption/command.py`.

Exit codes: 0 after SIGTERM or SIGINT, 1 after a bug (the restart recovers), 2 for arguments there are none of, 78
(EX_CONFIG, sysexits.h) for settings that are not allowed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from importlib import import_module

import uvloop

from agent import settings
from agent.runtime.allocator import share_one_arena
from agent.runtime.door import hold_socket
from agent.runtime.log import configure_logging, event_logger

log = event_logger("agent")

EXIT_CONFIG = 78
ASSEMBLY = "agent.assembly"
"""Imported by name: a plain import would be at the top, where it would keep the door shut."""


def spare_libraries() -> None:
    """Tell libraries, before they are imported, what they need not look for (docs/decisions/0059)."""
    # pydantic reads the metadata of every installed package in search of plugins: a tenth of a start's CPU.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # noqa: TID251  (told to a library, not a setting)
    # FastAPI imports the API of pydantic 1 to refuse its models, and does without where there is none: 4.3 MiB.
    sys.modules["pydantic.v1"] = None  # type: ignore[assignment]  # the import system's way to say: not there


def main() -> int:
    """Run the agent; its exit code."""
    spare_libraries()
    adopting = sys.argv[1:2] == ["adopt"]
    arguments = {} if adopting else _arguments()
    try:
        chosen = settings.load(arguments=arguments)
    except settings.SettingsInvalid as exc:
        for problem in exc.problems:
            sys.stderr.write(f"enoki: {problem}\n")
        return EXIT_CONFIG
    configure_logging(chosen.log_level.value, file=chosen.log_file)
    if adopting:
        return int(import_module(ASSEMBLY).adopt(sys.argv[2:], chosen))
    for notice in chosen.notices:
        log.warning("settings_notice", notice=notice)
    share_one_arena()
    try:
        uvloop.run(run(chosen))
    except BaseExceptionGroup:
        log.exception("agent_failed")
        return 1
    return 0


def _arguments() -> dict[str, str]:
    """The command line, by the names of the settings it stands for."""
    parser = argparse.ArgumentParser(
        prog="agent", description="The node agent. Settings come from the environment: docs/configuration.md."
    )
    parser.add_argument(
        "--dev-http",
        dest="ENOKI_DEV_HTTP",
        default="",
        metavar="ADDRESS:PORT",
        help="for development: the API, Swagger UI and a page for people on TCP, without authentication",
    )
    parser.add_argument(
        "--dev-http-allow",
        dest="ENOKI_DEV_HTTP_ALLOW",
        default="",
        metavar="WORDS",
        help="remote (not only loopback), writes (not only reading), or both with a comma",
    )
    return vars(parser.parse_args())


async def run(chosen: settings.Settings) -> None:
    """Serve until SIGTERM or SIGINT. Nothing on the node is touched before the lock beside the socket is ours."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with hold_socket(chosen.socket, while_waiting=lambda: import_module(ASSEMBLY)) as sock:
        await import_module(ASSEMBLY).serve_node(chosen, sock, stop)
    log.info("stopped")


if __name__ == "__main__":
    sys.exit(main())
