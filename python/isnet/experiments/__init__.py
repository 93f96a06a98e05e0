"""Experiments that a single command reproduces."""
