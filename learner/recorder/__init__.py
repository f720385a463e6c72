"""Looking into a step again: what is recorded, its exact replay, and the report of every token."""
