"""Servers that speak the OpenAI protocol: asked for answers, or for judgements."""
