"""Measurements behind ``headrace bench``: steps, head, attention, packing, checkpoints, and TRL."""
