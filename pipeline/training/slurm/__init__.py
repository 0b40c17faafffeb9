"""Runs as SLURM jobs: settings of a run in, a submitted job out, and after each of its attempts the decision whether another one follows.

    submission   checks the settings, then makes and submits the job (prepare, submit, describe, Resources, SubmitError)
    sweep        one run for every combination of settings, as elements of a job array (read_combinations, plan, element_settings)
    surroundings the environment that SLURM's commands are called with (submission_environment, ignored_wishes)
    attempts     the record of a job's attempts, and the decision after each (begin_attempt, end_attempt, Verdict, note_refusal)

launch/slurm/ has the batch script and the programs that call these functions.
"""
