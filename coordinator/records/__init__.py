"""Frozen values and rules that several packages of the coordinator share, each defined once."""
