"""The names and calls of other tools, carried out by this engine."""
