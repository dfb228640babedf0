"""Batch-norm statistics and activation ranges from images."""
