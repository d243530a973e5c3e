"""Link the CNI plugin into one static executable: `build.py OUTPUT`. Needs gcc and libpython3-dev, no package.

Run it with the interpreter whose libpython is to be linked: frozen code is of that version. The output needs nothing of
the host it runs on, neither Python nor a C library nor a loader (docs/decisions/0060).
"""

import importlib.util
import marshal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STANDARD_MODULES = ("encodings", "encodings.aliases", "encodings.utf_8")
"""What the interpreter imports before it can decode a file name; everything else it needs is frozen in libpython."""
OWN_MODULES = ("plugin", "plugin.shim")


class BuildFailed(Exception):
    """The compiler's or linker's words, or what is missing."""


def build(output: Path) -> None:
    """Write the executable, mode 0755. Raises: BuildFailed."""
    library = Path(sysconfig.get_config_var("LIBPL")) / sysconfig.get_config_var("LIBRARY")
    if not library.exists():
        raise BuildFailed(f"{library} is missing: install libpython3-dev")
    with tempfile.TemporaryDirectory(prefix="enoki-shim-") as directory:
        header = Path(directory, "frozen.h")
        header.write_text("\n".join(frozen_header()))
        argv = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s", f"-I{sysconfig.get_path('include')}"]
        argv += [f"-I{directory}", str(Path(__file__).with_name("enoki.c")), "-o", str(output), str(library), "-lm"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise BuildFailed("gcc is missing") from error
        # On success the linker still warns of getaddrinfo and the like, which a static C library serves with the host's
        # files: nothing here calls them.
        if done.returncode != 0:
            raise BuildFailed(done.stderr)


def frozen_header() -> Iterator[str]:
    """`frozen_modules`, in C (Include/cpython/import.h, `struct _frozen`)."""
    rows = []
    for name in (*STANDARD_MODULES, *OWN_MODULES):
        source, is_package = _source(name)
        code = compile(source.read_bytes(), f"<frozen {name}>", "exec", dont_inherit=True, optimize=0)
        symbol = f"code_of_{name.replace('.', '_')}"
        yield f"static const unsigned char {symbol}[] = {{{','.join(map(str, marshal.dumps(code)))}}};"
        fields = f'.name = "{name}", .code = {symbol}, .size = sizeof {symbol}, .is_package = {int(is_package)}'
        rows.append(f"    {{{fields}}},")
    yield from ("static const struct _frozen frozen_modules[] = {", *rows, "    {.name = NULL},", "};")


def _source(name: str) -> tuple[Path, bool]:
    """(source file, is it a package) of a module, without importing ours."""
    if name in OWN_MODULES:
        path = ROOT.joinpath(*name.split("."))
        return (path / "__init__.py", True) if path.is_dir() else (path.with_suffix(".py"), False)
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise BuildFailed(f"this Python has no module {name}")
    return Path(spec.origin), spec.submodule_search_locations is not None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build.py OUTPUT")
    try:
        build(Path(sys.argv[1]))
    except BuildFailed as failed:
        sys.exit(f"build.py: {failed}")
