"""Trains the embedded weights: `python -m training --help`, or `make train`; see README.md.

The stages have the order of a real VLM: the vision encoder is trained on labels, the decoder is trained as a language
model on text alone, then the projector and the later layers are trained on images while the early layers stay frozen,
layers that contribute little are taken out, and finally all layers are tuned together.
"""
