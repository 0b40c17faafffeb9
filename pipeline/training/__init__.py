"""Training a recipe's players over a stream of batches.

`interruption` first, then `distributed` (ranks and devices), `step`, `checkpoint`, `run_folder`, and `loop`, which is the run. In: a
`pipeline.config.Config` and a recipe. Out: the run folder. Nothing is imported here, so that `interruption` can catch signals before
torch takes its seconds to load.
"""
