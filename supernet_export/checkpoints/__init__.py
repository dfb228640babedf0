"""Checkpoints: downloaded, read without pickle, and recognised."""
