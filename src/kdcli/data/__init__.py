"""From rows to token batches."""
