"""A teacher's text by itself: written once, filtered, and laid out as rows to train on."""
