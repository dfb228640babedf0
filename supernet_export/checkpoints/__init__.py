"""Checkpoints: downloading, reading without pickle, and recognising them."""
