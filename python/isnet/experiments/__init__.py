"""Experiments that a single command repeats."""
