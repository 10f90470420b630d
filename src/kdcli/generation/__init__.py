"""Answers to prompts: batched, with a key-value cache, and the same whatever the batches are."""

from kdcli.generation.batch import Completion, GenerationRequest, answers, generate
from kdcli.generation.sampling import sample, uniforms

__all__ = ["Completion", "GenerationRequest", "answers", "generate", "sample", "uniforms"]
