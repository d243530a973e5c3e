"""A node that the AWS plugin (aws-node, IPv4, secondary addresses) has run becomes ours, and goes back, under its pods.

checkpoint  pure: the AWS plugin's file of allocations
survey      reads the kernel: links, rules, routes, iptables and nftables
planning    pure: (checkpoint, survey) -> what to do to take it over, or why not
rollback    pure: survey -> what to do to give it back, or why not
rules       pure: the policy rules that both layouts have
commands    pure: the AWS plugin's objects as text for `ip`, `iptables` and `nft`
executor    adds, verifies, then removes
command     `python -m agent adopt`

Nothing is remembered between the two ways: the kernel says who holds what (alias, group, routes), and the AWS plugin's
file is kept aside under another name.
"""
