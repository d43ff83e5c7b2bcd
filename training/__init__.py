"""How the embedded weights are made: `python -m training --help`, or `make train`.

Four stages, as for a real VLM: the vision tower learns to see, the decoder learns to read as a language model on text
alone, then the projector and the later layers learn to look while the early layers stay frozen, and at last all layers
are tuned together.
"""
