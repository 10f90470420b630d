"""Chunked loss, one training loop, checkpoints."""
