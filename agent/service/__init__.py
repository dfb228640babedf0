"""The agent at work: its connection, its name, its tasks and its outbox."""
