"""Clients of OpenAI-compatible servers, asked for answers or judgements."""
