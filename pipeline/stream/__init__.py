"""From stored bytes to batches: `order`, then `storage`, `cache`, `decode`, `loader`.

In: a manifest (`shards.dataset.manifest`) and a `StreamConfig`. Out: `loader.Batch`, the same batches for every number of ranks, threads
and interruptions. Usable without any of the training code.
"""
