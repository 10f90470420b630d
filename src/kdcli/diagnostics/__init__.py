"""Checks a set-up before money is spent on it."""
