"""What survives a kill: step records, checkpoints with checksums, and resuming from both."""
