"""Checkpoints: the state of a run in, a folder of safetensors files that exists whole or not at all out, on a disk or in S3.

store       saves beside the training, reads back, finds the newest that verifies (CheckpointStore, SaveOutcome)
files       the format: write, read, verify and describe one checkpoint (Checkpoint, CheckpointInvalid)
snapshot    a copy of the state in CPU memory, which is written while the training goes on
ownership   the right of one run to write the checkpoints below a URL (release)
retention   which checkpoints stay, and the remains of killed saves (Retention)
"""
