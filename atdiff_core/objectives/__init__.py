"""Training objectives: each separates drawing (all randomness) from evaluating (none)."""
