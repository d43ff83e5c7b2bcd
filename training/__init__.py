"""Trains the embedded weights: `python -m training --help`, or `make train`.

There are four stages, as for a large VLM: the vision encoder is trained on labels, the decoder is trained as a language
model on text alone, then the projector and the later layers are trained on images while the early layers stay frozen,
and finally all layers are tuned together.
"""
