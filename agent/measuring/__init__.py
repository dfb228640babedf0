"""Latencies measured in a child process that may be killed."""
