"""The built-in supernet: its data, and the files that ship with it."""
