"""Many programs at once, a fifth hostile: ``python -m tests.chaos.sandbox --jobs 10000``."""
