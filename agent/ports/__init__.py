"""What the agent asks of the outside world, as protocols.

cloud       EC2 and instance metadata; agent/cloud implements it
datapath    the kernel; agent/datapath implements it
cluster     Kubernetes; agent/kube implements it

Each method says what it does, what it raises, whether it may be repeated, and what cancellation leaves behind.
All raise only `AgentError` subclasses for expected failures; every call has a deadline of its own.
"""
