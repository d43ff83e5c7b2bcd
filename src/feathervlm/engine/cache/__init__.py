"""Layers of transformers caches that hold pruned keys and values."""
