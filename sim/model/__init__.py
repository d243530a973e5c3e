"""The VPC as values and pure functions: no clock, no I/O, no logger."""
