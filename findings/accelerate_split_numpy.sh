#!/usr/bin/env bash
# accelerate's split_between_processes gives a NumPy array, or a range, whole to every process, so that each picture is evaluated once a
# process. Lists, tuples, tensors, dictionaries of these, and data sets of the package `datasets` are divided.
#
# Guess before: anything with a length that can be sliced is divided, and everything else raises an error.
# Seen with accelerate 1.15.0, torch 2.13.0, NumPy 2.4.6, Python 3.11, three processes on a CPU:
#
#     list of 7: 3 + 2 + 2
#     tuple of 7: 3 + 2 + 2
#     tensor of 7: 3 + 2 + 2
#     dictionary with a tensor of 7: 3 + 2 + 2
#     array of 7: 7 + 7 + 7
#     dictionary with an array of 7: 7 + 7 + 7
#     range of 7: 7 + 7 + 7
#     range of 7, padded: 7 + 7 + 7
#
# Means over all processes stay right, which hides it: the work is done three times, counts and intervals are wrong, and files that the
# processes write by number collide. `list(range(n))` and `torch.from_numpy(array)` are divided.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import numpy as np
import torch
from accelerate import PartialState

state = PartialState(cpu=True)
inputs = {
    "list of 7": (list(range(7)), {}),
    "tuple of 7": (tuple(range(7)), {}),
    "tensor of 7": (torch.arange(7), {}),
    "dictionary with a tensor of 7": ({"ids": torch.arange(7)}, {}),
    "array of 7": (np.arange(7), {}),
    "dictionary with an array of 7": ({"ids": np.arange(7)}, {}),
    "range of 7": (range(7), {}),
    "range of 7, padded": (range(7), {"apply_padding": True}),
}
for name, (values, options) in inputs.items():
    with state.split_between_processes(values, **options) as part:
        counts: list[int] = [0] * state.num_processes
        torch.distributed.all_gather_object(counts, len(part["ids"] if isinstance(part, dict) else part))
    if state.is_main_process:
        print(f"{name}: {' + '.join(map(str, counts))}", flush=True)
torch.distributed.barrier()
state.destroy_process_group()
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/torchrun" --standalone --nproc-per-node 3 "$folder/look.py" \
    2>"$folder/messages" | tee "$folder/seen" || { cat "$folder/messages" >&2; exit 1; }
sed -n '/^#     /s///p' "$0" | diff - "$folder/seen"
