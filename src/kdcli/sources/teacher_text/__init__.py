"""A teacher's answers to prompts, written once and stored."""
