"""Runs a schedule on a model: hooks, pruned caches, signals read from layers, and the report.

It knows transformers' decoders and caches; it knows no method and no model family by name.
"""
