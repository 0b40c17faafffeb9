"""From stored bytes to batches.

In: data sets (`shards.dataset.manifest`) and a `loader.StreamConfig`. Out: an iterable `loader.StreamLoader` of `loader.Batch`, the same
batches for every number of ranks, threads and interruptions. `order` says which sample is next, `mixture` and `dataset` give each data set
its slots, `plan` draws what a batch needs, `read` brings the bytes, `decode` turns them into crops, and `batch` puts them together. Usable
without any of the training code.
"""
