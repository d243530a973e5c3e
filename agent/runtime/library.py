"""uvicorn without its command line and reloader, which its `__init__` imports: 1.3 MiB (docs/decisions/0059)."""

from __future__ import annotations

import sys

from agent.runtime.packages import without_init

without_init("uvicorn")

from uvicorn.config import Config  # noqa: E402

# Modules that are imported later look for it there.
sys.modules["uvicorn"].Config = Config  # type: ignore[attr-defined]

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: E402
from uvicorn.server import Server  # noqa: E402

__all__ = ["Config", "HttpToolsProtocol", "Server"]
