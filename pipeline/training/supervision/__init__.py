"""Supervision of a rank from outside its loop: stop requests, hangs, deaths, and the stacks of its threads.

In: signals of schedulers and launchers, and the stage that the loop notes. Out: `interruption.Interruption.requested` for the loop, the end
of a process that hangs (`watchdog.Watchdog`), files of stacks (`stacks`), and a process that outlives ranks and launcher, writes down which
rank died first and prints the last line (`guard`, `guard_process`, `exit_status`). Nothing is imported here, because `interruption`,
`stacks` and `guard` work before torch is imported.
"""
