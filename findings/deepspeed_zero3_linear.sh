#!/usr/bin/env bash
# DeepSpeed's ZeRO stage 3 replaces torch.nn.functional.linear for the whole process, and leaves its own in place after engine.destroy().
#
# Guess before: stage 3 changes the modules that it was given, and destroy() takes back what it changed.
# Seen with deepspeed 0.19.8, torch 2.13.0, Python 3.11, one rank on a CPU with gloo:
#
#     after stage 1: torch's own linear
#     after stage 3: linear of deepspeed.runtime.zero.linear
#     after destroy: linear of deepspeed.runtime.zero.linear
#     a module that DeepSpeed never saw: LinearFunctionForZeroStage3Backward
#
# So every nn.Linear of the process that is used later, of modules that have nothing to do with DeepSpeed too, goes through a Python
# autograd function. Whoever counts operations (torch.utils.flop_counter) or compares gradients in the same process measures that instead:
# keep torch's function and put it back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 'numpy<3' setuptools
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check deepspeed==0.19.8
cat > "$folder/look.py" <<'PYTHON'
import os
import sys

import torch
from torch import distributed, nn
from torch.nn import functional

own = functional.linear


def shown() -> str:
    return "torch's own linear" if functional.linear is own else f"linear of {functional.linear.__module__}"


import deepspeed  # noqa: E402

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)


def engine(stage: int) -> deepspeed.DeepSpeedEngine:
    model = nn.Linear(4, 4)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return made


said = []
engine(1).destroy()
said.append(f"after stage 1: {shown()}")
third = engine(3)
said.append(f"after stage 3: {shown()}")
third.destroy()
said.append(f"after destroy: {shown()}")
stranger = nn.Linear(2, 2)(torch.ones(1, 2))
said.append(f"a module that DeepSpeed never saw: {type(stranger.grad_fn).__name__}")
print("\n".join(said))
PYTHON
found=$(cd "$folder" && DS_ACCELERATOR=cpu LOCAL_RANK=0 RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 \
    "$folder/venv/bin/python" look.py "$folder/store" 2> "$folder/log" | grep -E '^(after|a module)') || { tail -5 "$folder/log"; exit 1; }
printf '%s\n' "$found"
expected="after stage 1: torch's own linear
after stage 3: linear of deepspeed.runtime.zero.linear
after destroy: linear of deepspeed.runtime.zero.linear
a module that DeepSpeed never saw: LinearFunctionForZeroStage3Backward"
[ "$found" = "$expected" ] || { echo "this is no longer what was seen"; exit 1; }
