"""Compile modules without docstrings and asserts: `bytecode.py PATH...`, directories or files. Standard library only.

An agent keeps the code of its libraries in memory, and their docstrings are 3 MiB of it. The files get the names of
ordinary bytecode, so that no flag of the interpreter is needed, and are not compared with their sources: in an image
both stay as they are, and a start is spared a thousand calls. Honours `PYTHONPYCACHEPREFIX`.
"""

import py_compile
import sys
from collections.abc import Iterable, Iterator
from importlib.util import cache_from_source
from pathlib import Path


def sources(paths: Iterable[str]) -> Iterator[Path]:
    """The files, and those below the directories."""
    for path in map(Path, paths):
        yield from path.rglob("*.py") if path.is_dir() else (path,)


def main(paths: Iterable[str]) -> None:
    """Compile them all. Raises: nothing for what is no Python 3; libraries carry templates."""
    for source in sources(paths):
        try:
            py_compile.compile(
                str(source),
                cfile=cache_from_source(str(source)),
                doraise=True,
                optimize=2,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except py_compile.PyCompileError as error:
            sys.stderr.write(f"{source}: left out: {error.exc_type_name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
