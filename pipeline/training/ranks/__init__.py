"""The ranks of a run: the environment of a launched process in, a `World` of joined ranks out.

inherited    leaves out or refuses variables of other programs in the environment (leave_out, check_ranks, InheritedError)
launcher     reconciles the options of `accelerate launch` with the configuration (with_launcher_mode)
rendezvous   waits until every rank has joined, and names those that are missing (RanksMissing)
world        the process group, and the few collectives that the loop needs (World, join, LaunchError)
"""
