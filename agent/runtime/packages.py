"""Modules of a package without its `__init__`, for packages whose `__init__` imports everything they have.

The modules themselves are the package's own, unchanged; the calls are importlib's. `tests/unit/test_imports.py` holds
what that saves, and fails when a later version of a package needs its `__init__`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec


def without_init(package: str) -> None:
    """Make a package's modules importable without running its `__init__`. Nothing to do once it has been imported.

    package: full name; a package below another one comes after it.
    """
    if package in sys.modules:
        return
    spec = find_spec(package)
    if spec is None:
        return  # whoever imports a module of it is told
    sys.modules[package] = made = module_from_spec(spec)
    parent, _, name = package.rpartition(".")
    if parent:
        setattr(sys.modules[parent], name, made)
