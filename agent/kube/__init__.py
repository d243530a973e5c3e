"""Kubernetes, as this node sees it: pods, the node itself, ENIConfigs, events. The only room that knows an API server.

library.py      kubernetes-asyncio, as far as it is used
├── access.py   where the API server is, and who we are
├── api.py      one request, its deadline, its error in our words
├── reflector.py    list and watch of one collection, kept as values
├── objects.py      pure: the few fields of a pod, a node and an ENIConfig that matter here
├── demand.py       pure: which pods will ask for an address; which attachments have no pod any more
├── siting.py       pure: where new ENIs go under custom networking
├── outbox.py       pure: which reports become events, and when
└── cluster.py      the `Cluster` of agent/ports
absent.py       the `Cluster` of a node without Kubernetes

Kubernetes adds knowledge and is never a condition: whatever is asked of this room is answered at once, from what it
knows; while the API server is away, from what it knew.
"""
