"""Data of the built-in supernet, and the files that ship with it."""
