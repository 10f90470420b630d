"""Crash-safe files: atomic writes, digests, locks, and the layout of a run folder."""
