"""LLM judges: scores asked of a server or given in a file."""
