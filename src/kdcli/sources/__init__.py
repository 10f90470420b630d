"""Sources of training sequences."""
