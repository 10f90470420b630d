"""The contract that every loss is tested by, built-in or plug-in."""
