"""Model files written from the intermediate graph."""
