"""Names in paths and queries, as the places they come from allow them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"

Namespace = Annotated[
    str, Path(pattern=_LABEL, max_length=63, description="Kubernetes namespace.", examples=["default"])
]
Pod = Annotated[str, Path(pattern=_SUBDOMAIN, max_length=253, description="Pod name.", examples=["web-0"])]
QueryNamespace = Annotated[
    str | None, Query(pattern=_LABEL, max_length=63, description="Kubernetes namespace.", examples=["default"])
]
QueryPod = Annotated[str | None, Query(pattern=_SUBDOMAIN, max_length=253, description="Pod name.", examples=["web-0"])]
QueryRequestId = Annotated[
    str | None, Query(pattern=r"^[A-Za-z0-9\-]{1,64}$", max_length=64, description="Id of one CNI call.")
]
