"""Policy, critic, adapters, reference; and how they are computed: attention, layers, shards."""
