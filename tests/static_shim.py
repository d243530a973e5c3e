"""The plugin as hosts get it: one static executable, linked from this checkout (deploy/shim)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD_DEADLINE_S = 60.0
_PYTHON = "/usr/bin/python3"
"""The distribution's: the one libpython3-dev belongs to."""
_LIBRARY = """
import pathlib, sysconfig
print(pathlib.Path(sysconfig.get_config_var("LIBPL"), sysconfig.get_config_var("LIBRARY")).exists())
"""


def missing() -> str:
    """What it cannot be linked without and this machine lacks; empty when everything is there."""
    lacking = [] if shutil.which("gcc") else ["gcc"]
    if _run(_PYTHON, "-I", "-c", _LIBRARY) != "True":
        lacking.append("libpython3-dev")
    return ", ".join(lacking)


def build_in(directory: Path) -> Path:
    """Link it, in half a second; the path of the executable."""
    output = directory / "enoki"
    _run(_PYTHON, "-I", str(ROOT / "deploy" / "shim" / "build.py"), str(output))
    return output


def _run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=BUILD_DEADLINE_S).stdout.strip()
