"""`enokictl`: asks the agent of this node, over its HTTP API, and shows the answer."""
