"""Models: checked, loaded, and split into decoder and head."""
