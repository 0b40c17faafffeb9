"""Engines: how one player's network and optimiser are spread over the ranks.

In: a player, the ranks, and the state of an optimiser as full tensors. Out: gradients, updates, and the state again. `engine.Engine` is the
interface, `engine.ReplicatedEngine` DDP, `zero.ShardedEngine` DeepSpeed's ZeRO, which `pipeline.training.resume` imports only for the modes
that need it.
"""
