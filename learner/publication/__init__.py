"""Weights on their way to actors: snapshot, publish, send, canary; and export to files."""
