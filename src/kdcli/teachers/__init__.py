"""What the student learns from: a live model, several, a cache, another tokenizer's, or a server."""
