"""The demonstration: built-in models and data, and two toy experiments with a known answer."""
