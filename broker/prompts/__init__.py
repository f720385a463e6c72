"""Prompts: sequences with cursors, their mixture, and the state that the ledger keeps of them."""
