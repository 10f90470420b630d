"""Tasks of lm-evaluation-harness, run on kd's models."""
