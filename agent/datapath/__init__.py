"""The kernel of this node: links, routes, rules, namespaces, one nftables table.

kernel.py       the `Datapath` of agent/ports.py: an async face over threads that block
├── pods.py     wire, unwire and check one attachment
├── enis.py     the node itself and its ENIs
├── seen.py     what the kernel holds now
├── firewall.py the nftables table as text (libnftables); cooling.py its cooldown set (raw nfnetlink)
└── monitor.py  link notifications
desired.py, schema.py, layout.py    pure: what should exist, under which names and numbers
messages.py     hot netlink messages as struct templates; cold.py the others, by pyroute2
netlink.py, namespaces.py           the two doors into the kernel
"""
