"""Campaigns against a real broker: kill it again and again, then ask whether it kept its word."""
