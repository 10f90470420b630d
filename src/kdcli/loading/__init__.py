"""Models, tokenizers and rows, each opened once."""
