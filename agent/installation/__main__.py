"""The init container's command, `python -m agent.installation`: put the plugin on the host and try it there.

Exit codes: 0 done, 1 with a sentence on standard error, 78 (EX_CONFIG, sysexits.h) for settings that are not allowed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from agent import settings
from agent.installation.conflist import PLUGIN
from agent.installation.files import replace_file

SOURCE = Path("/opt/enoki/libexec") / PLUGIN
"""Where the image has the static executable (deploy/image/Containerfile)."""
TRIAL_S = 10.0


def main() -> int:
    """Copy, try, say what was done."""
    try:
        chosen = settings.load()
    except settings.SettingsInvalid as exc:
        for problem in exc.problems:
            sys.stderr.write(f"enoki: {problem}\n")
        return 78
    try:
        words = install(SOURCE, chosen.host_bin_directory)
    except (OSError, subprocess.SubprocessError) as exc:
        sys.stderr.write(f"enoki: cannot install the plugin in {chosen.host_bin_directory}: {exc}\n")
        return 1
    sys.stdout.write(f"enoki: {words}\n")
    return 0


def install(source: Path, directory: Path) -> str:
    """Make `directory` hold the plugin, and run it from there: a directory mounted noexec or an executable for another
    architecture is found now and not by the first pod.

    Raises: OSError, subprocess.SubprocessError.
    """
    target = directory / PLUGIN
    replaced = replace_file(target, source.read_bytes(), mode=0o755)
    subprocess.run(
        [target],
        env={"CNI_COMMAND": "VERSION"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=TRIAL_S,
    )
    return f"{target} {'installed' if replaced else 'was up to date'}"


if __name__ == "__main__":
    sys.exit(main())
