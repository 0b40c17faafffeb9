"""Training: a recipe's players learn from a stream of batches.

In: a `pipeline.config.Config` and, through it, a recipe and a data set. Out: the run folder with checkpoints, history, events and pictures.
`loop.pretrain` is the whole run. It uses, in the order of a run, `supervision` (signals, hangs), `ranks` (ranks and devices), `record` (the
run folder), `reporting` (console, metrics, history), `resume` and `checkpoint`, `engine` (networks and optimisers over the ranks), and
`step` with its `phases`. `failures` ends a process with a message, `slurm` starts jobs and their next attempts.

Nothing is imported here, so that `supervision.interruption` can catch signals before torch takes its seconds to load.
"""
