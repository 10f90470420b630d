"""The kd command."""
