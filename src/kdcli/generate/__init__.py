"""Answers to prompts: batched, with a key-value cache, and the same whatever the batches are."""

from kdcli.generate.answers import Answer, Asked, answers, generate
from kdcli.generate.draws import uniforms
from kdcli.generate.sampling import sample

__all__ = ["Answer", "Asked", "answers", "generate", "sample", "uniforms"]
