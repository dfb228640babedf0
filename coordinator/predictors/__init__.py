"""Latency prediction: physical features, an online Bayesian linear model, and priors learned from other devices."""
