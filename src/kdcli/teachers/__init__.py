"""Teachers: live, an ensemble, cached, with another tokenizer, or behind a server."""
