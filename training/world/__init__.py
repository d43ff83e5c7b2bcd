"""The scenes and questions of the next embedded model, used by `training` until its weights replace the shipped ones.

The modules take the places of those with the same names in `feathervlm.embedded` when the weights are replaced.
"""
