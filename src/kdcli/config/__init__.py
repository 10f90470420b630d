"""Settings: their types and defaults, where they are read from, presets and sweeps."""
