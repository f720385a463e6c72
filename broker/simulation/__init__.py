"""Discrete-event simulation of whole runs around the real ledger, admission and selection code.

Pure: a virtual clock, seeded randomness, no sockets. ``python -m broker.simulation NAME`` runs one
of the studies; ``headrace bench scheduler``, ``staleness`` and ``fleet`` start it and read its
JSON.
"""
