"""Bundles and blobs, from the broker or from a mirror."""
