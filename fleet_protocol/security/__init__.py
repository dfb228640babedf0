"""Credentials and signed orders."""
