"""Facts the simulator is built on, generated from public data."""
