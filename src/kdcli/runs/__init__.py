"""What a command does: distil, evaluate, compare, demo."""
