"""A rank's slice of a global batch while it is made.

In: the plan of a batch (`pipeline.stream.plan`) and memory for it. Out: a `batch.Batch`, with every slot filled: `filling.Filler` is the
work of the threads, `batch.Pending` the wait for them, and `quarantine.Quarantine` the list of the samples that could not be used.
"""
