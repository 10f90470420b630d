"""A judge's opinion of answers: asked for at a server, or given elsewhere."""
