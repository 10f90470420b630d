"""Checks a set-up before training."""
