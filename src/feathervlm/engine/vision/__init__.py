"""The vision encoder: what it is given, what it returns, and merging inside it."""
