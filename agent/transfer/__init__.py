"""Fetching and caching of bundles and other blobs, from the broker or from a mirror."""
