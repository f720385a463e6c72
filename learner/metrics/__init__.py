"""What a step says: statistics of tokens, rates, phases; Prometheus and trackers."""
