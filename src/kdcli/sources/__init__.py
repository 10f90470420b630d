"""Where training windows come from."""
