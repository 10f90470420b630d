"""Losses, sources, metrics and scores by name, and the text form that names them with options."""
