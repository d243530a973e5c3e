"""Write docs/configuration.md from the settings, or check that it is what they say.

.venv/bin/python -m scripts.configuration --write
.venv/bin/python -m scripts.configuration --check
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.settings import NOT_HONOURED, Documented, documented

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"

_HEAD = """\
# Configuration

The agent reads environment variables, once, when it starts. Names without `ENOKI_` are those of the AWS VPC CNI plugin,
with its meaning, so that the `env` of an `aws-node` DaemonSet can be moved over unchanged.

- A value that is not allowed stops the start; the message names every such setting, its value and what is allowed.
  (The AWS plugin falls back to a default.)
- An empty value means unset.
- Booleans are spelled as in Go: `1 t T true True TRUE`, `0 f F false False FALSE`.

The EC2 endpoint and the credentials are found the AWS SDK's way: `AWS_ENDPOINT_URL_EC2`, `AWS_ROLE_ARN` with
`AWS_WEB_IDENTITY_TOKEN_FILE`, container credentials, the instance's role. The region is always the instance's.

## Settings

| name | default | allowed | meaning |
|---|---|---|---|
"""

_PLUGIN = """
## The CNI plugin

`bin/enoki` reads two variables of its own, from the environment of the container runtime that executes it.

| name | default | allowed | meaning |
|---|---|---|---|
| `ENOKI_SOCKET` | `/run/enoki/agent.sock` | a path | The agent's socket. |
| `ENOKI_TIMEOUT_S` | `30` | a number above 0, at most 3600 | Seconds a call may take. After that: "try again later". |

Keep the limit above `ENOKI_ADD_DEADLINE_S`, so that an ADD's own reason gets out, and below the runtime's.
"""

_NOT_HONOURED = """
## Settings of the AWS plugin without effect

Nothing reads these in this version. One that is set to anything but the values below, with which a node behaves the
same, is named in one warning at start. Names the AWS plugin does not know either are ignored.

| name | values that ask for nothing |
|---|---|
"""


def render() -> str:
    """The whole page."""
    settings = "".join(_row(one) for one in documented())
    rest = "".join(
        f"| `{name}` | {', '.join(f'`{value}`' for value in sorted(inert)) or 'none'} |\n"
        for name, inert in sorted(NOT_HONOURED.items())
    )
    return _HEAD + settings + _PLUGIN + _NOT_HONOURED + rest


def _row(one: Documented) -> str:
    setting = one.setting
    default = f"`{setting.default}`" if setting.default else "unset"
    return f"| `{setting.name}` | {default} | {setting.kind.allowed} | {one.doc} |\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true")
    what.add_argument("--check", action="store_true")
    if arguments.parse_args().write:
        TARGET.write_text(render(), encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != render():
        sys.exit(f"{TARGET} is not what agent/settings/ says; run this with --write")


if __name__ == "__main__":
    main()
