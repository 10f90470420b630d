"""Measuring a model, a run, or answers made elsewhere."""
