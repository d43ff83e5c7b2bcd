"""Layers of transformers caches that store pruned keys and values."""
