"""Loading models and splitting them into trunk and head."""
