"""Everything between the stored bytes and the trained encoder, in the order in which an image travels:

`config`, then `stream` (order, storage, cache, decode, loader), `masking`, `model`, `objective`, `recipes`, `training`.
"""
