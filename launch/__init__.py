"""The programs that a person runs: each parses its arguments, calls one function and prints one result.

    pretrain      trains a recipe (started by `accelerate launch`, or by `python -m launch`, which keeps the launcher's text in a file)
    checkpoints   lists, verifies, prunes or releases the checkpoints of a run
    export        writes the encoder of a checkpoint to a file
    embed         writes the features of a whole data set
    evaluate      judges an encoder: probe, classifiers on its frozen features
    ledger        proves what a run trained on
    report        writes a run as one HTML page
    configs/      settings of the paper's experiments; accelerate/: configurations of the launcher
    slurm/        submits a run to SLURM, and the batch script
    local/        the demo, live monitoring, and the servers that both start on this machine

`--help` of each program explains its arguments.
"""
