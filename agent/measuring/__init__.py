"""Measurements in a child process that may be killed, in turns with reference subnets."""
