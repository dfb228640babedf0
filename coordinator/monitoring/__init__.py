"""Snapshots and events for other machines: feeds, publisher, metrics."""
