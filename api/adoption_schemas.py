"""What `/v1/adoption` answers."""

from __future__ import annotations

from api.schemas import Count, View, shown


class AdoptionView(View):
    """What taking the node over from aws-node would do, or why it would not."""

    model_config = shown(
        {
            "possible": False,
            "refusals": ["/var/run/aws-node/ipam.json cannot be read: no such file"],
            "pod_count": 0,
            "eni_count": 0,
            "script": "",
            "next_steps": ["stop this agent on the node", "python -m agent adopt --apply"],
        }
    )

    possible: bool
    """Nothing stands in the way."""
    refusals: list[str]
    """Every reason why not."""
    pod_count: Count
    """Pods that would change hands."""
    eni_count: Count
    """Secondary ENIs that would change hands."""
    script: str
    """What would be done, as a person could type it."""
    next_steps: list[str]
    """How it is done. Not by this agent while it runs: its repairs and the take-over would work against one another."""
