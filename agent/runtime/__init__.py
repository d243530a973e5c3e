"""An asyncio toolkit without domain knowledge: supervision, loops, locks, the socket server, the log."""
