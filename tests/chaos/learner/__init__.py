"""Chaos of the learner: its ranks die, hang and are stopped; an oracle compares every bit."""
