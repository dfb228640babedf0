"""Weights of one subnet, cut out of a bundle."""
