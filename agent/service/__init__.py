"""What the API asks of a node, answered by its parts. Translates both ways and decides nothing."""

from agent.service.node_service import AgentService, cni_error

__all__ = ["AgentService", "cni_error"]
