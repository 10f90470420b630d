"""Answers to prompts: batched, with a key-value cache, and the same whatever the batches are."""

from kdcli.generation.batch import Answer, Asked, answers, generate
from kdcli.generation.sampling import sample, uniforms

__all__ = ["Answer", "Asked", "answers", "generate", "sample", "uniforms"]
