"""A simulated Kubernetes API server: what a node agent asks of one, over HTTP, with the faults of a bad day.

store.py    objects, their resource versions, and the history that watches read
server.py   paths, verbs, list, watch, bookmarks, merge patches, `Status` errors
faults.py   what goes wrong, and how often
"""
