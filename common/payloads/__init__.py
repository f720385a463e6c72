"""Arrays of rollouts outside the broker: servers that hold them and the client of both ends."""
