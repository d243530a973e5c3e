"""`/v1/doctor`: read-only checks of what the node, EC2, IMDS and Kubernetes must be like for pods to have a network.

`facts.py` is what is looked at; `host_checks.py`, `kernel_checks.py` and `cloud_checks.py` judge it (pure);
`collect.py` looks. Imported when somebody asks, and not before.
"""
