"""A simulated Kubernetes API server: what a node agent asks of one, over HTTP, with the faults of a bad day.

store.py    objects, their resource versions, and the history that watches read
strategy.py what is made of an object that somebody writes, and what is refused
users.py    who asks, and what RBAC allows
discovery.py what it serves; selectors.py: by field and label
server.py   paths, verbs, list, watch, bookmarks, merge patches, `Status` errors
faults.py   what goes wrong, and how often
"""
