"""The kernel of this node: links, routes, rules, namespaces, one nftables table.

kernel.py       the `Datapath` of agent/ports.py: an async face over the threads of threads.py, which block
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
