"""Read-only web pages on the runs of a store, live: readers, figures, pages, access rules, server."""
