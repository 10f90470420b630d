"""Losses, sources and metrics by name, and the text form that names them with options."""
