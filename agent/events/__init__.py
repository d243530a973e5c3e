"""What happened on this node: a bounded journal of frozen events, for people and programs that ask.

Nothing here is ever needed for correctness: the agent decides by the three truths, never by what it wrote down.
"""
