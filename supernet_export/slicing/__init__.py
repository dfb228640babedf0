"""Slicing of one subnet's weights out of a bundle."""
