"""Measurements behind ``headrace bench``: one step, the head, packing, and TRL side by side."""
