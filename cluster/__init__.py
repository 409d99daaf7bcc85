"""Machines: how to reach Ray, and what fits on it. Knows nothing of speech."""
