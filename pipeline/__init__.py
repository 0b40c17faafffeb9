"""Everything between the stored bytes and the trained encoder, in the order in which an image travels.

In: a data set that `shards` has built, and settings. Out: a run folder with checkpoints, history and pictures.

`config` (with `mapping` and `command_line`) reads and checks the settings. `stream` turns stored bytes into batches, `masking` drops
pixels, `model` has the networks, `objective` the losses, `recipes` puts these together into pretext tasks, `training` runs them.
`evaluation` takes the trained encoder to others. `simulation` predicts what a run will ask of its store.
"""
