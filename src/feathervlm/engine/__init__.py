"""Runs a schedule on a model: hooks, pruned caches, signals read from layers, and the report.

It works on the decoders and caches of transformers; methods and model families are given to it.
"""
