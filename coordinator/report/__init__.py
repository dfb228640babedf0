"""The outcome of a run as data, files and a page."""
