"""The running agent: its connection, its name, its tasks, its results, its state folder."""
