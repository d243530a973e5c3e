"""The kernel of this node: links, routes, rules, namespaces, one nftables table.

kernel.py       the `Datapath` of agent/ports: an async face over the threads of threads.py, which block
├── pods.py     wire and unwire one attachment; compare.py is CHECK
├── enis.py     the node itself and its ENIs
├── seen.py     what the kernel holds now
├── firewall.py the nftables table as text (libnftables)
├── hostports.py, cooling.py   its maps and sets that pods change (raw nfnetlink: elements.py)
├── conntrack.py               forgetting connections
└── healing.py  the loop that puts right what somebody changed: monitor.py and notices.py wake it, look.py looks,
                diff.py decides, damping.py slows a fight down, memory.py remembers what was made
desired.py, diff.py, schema.py, layout.py    pure: what should exist, under which names and numbers
messages.py     hot netlink messages as struct templates; shaping.py token buckets; cold.py the others, by pyroute2
netlink.py, namespaces.py, sysctls.py        the doors into the kernel
"""

from agent.runtime.packages import without_init

# `import pyroute2` also imports its database (with sqlite), its command line, plan 9 and every family of generic
# netlink: 160 modules and 9.5 MiB, where this room uses a handful of message classes (docs/decisions/0052).
without_init("pyroute2")
