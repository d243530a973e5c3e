"""How the document describes answers that are problem details (RFC 9457)."""

from __future__ import annotations

from typing import Any

from api.schemas import ProblemView

PROBLEM = "application/problem+json"

Responses = dict[int | str, dict[str, Any]]
"""As FastAPI's `responses` takes them."""


def problem_response(description: str) -> dict[str, Any]:
    """One of them."""
    schema = {"$ref": "#/components/schemas/ProblemView"}
    return {"description": description, "content": {PROBLEM: {"schema": schema}}}


ANY_OTHER: Responses = {"default": problem_response("Any other problem (RFC 9457).")}
STARTING: Responses = {503: problem_response("The agent is starting; `/v1/startup` says where it is.")}
INVALID: Responses = {422: problem_response("A parameter is unknown or malformed; the detail says which and how.")}
FORBIDDEN: Responses = {403: problem_response("The caller is not root, or asks on the readers' socket.")}
UNKNOWN_POD: Responses = {404: problem_response("This node knows nothing of such a pod.")}


def component_schemas() -> dict[str, Any]:
    """Schemas that `problem_response` refers to, for `components.schemas`."""
    return {"ProblemView": ProblemView.model_json_schema()}
