"""Supervision of a rank from outside its loop: stop requests, hangs, and the stacks of its threads.

In: signals of schedulers and launchers, and the stage that the loop notes. Out: `interruption.Interruption.requested` for the loop, the end
of a process that hangs (`watchdog.Watchdog`), and files of stacks (`stacks`). Nothing is imported here, because `interruption` and `stacks`
install their handlers before torch is imported.
"""
