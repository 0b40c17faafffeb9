"""The record of a run: facts of the loop in, the files of the run folder out, and the proof of what the run trained on.

    run_folder       the folder that one run holds: settings, events, history, lock (RunFolder, RunFolderError)
    samples_digest   the digest of the samples of a step, which the history keeps
    ledger           the record replayed against the order of the data (account)
    grid             a PNG of what the networks paint (save_grid)
    grid_layout      the places of its cells, its headers and its figures
    environment      versions and hardware of a process (environment)

Names and format of the files are in `monitoring.run_files`, which the page of a run reads by, too.
"""
