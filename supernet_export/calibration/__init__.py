"""Estimation of batch-norm statistics and activation ranges from images."""
