"""Accuracy predictors of subnets."""
