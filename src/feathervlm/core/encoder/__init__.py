"""Merging of patches inside the vision encoder."""
