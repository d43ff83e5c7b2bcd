"""The one way to load a model and to ask it, pruned or not."""
