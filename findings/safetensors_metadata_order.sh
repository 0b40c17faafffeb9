#!/usr/bin/env bash
# safetensors writes the entries of `metadata` in another order each time, so that the same weights give files of other bytes.
#
# Guess before: the format has a fixed layout, so saving the same tensors with the same metadata twice gives the same bytes.
# Seen with safetensors 0.8.0, numpy 2.4.6, Python 3.11, ten saves of one tensor with six entries of metadata in one process:
#
#     with metadata: more than one digest of ten files
#     with one entry: 1 digest of ten files
#     without metadata: 1 digest of ten files
#     tensors and metadata read back: equal every time
#
# The header is JSON, and the entries of __metadata__ come in the order of a hash map that is seeded anew for each call. A digest of the
# file does not say whether two exports hold the same weights: compare the tensors, or sort the header's entries after saving.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import hashlib
import json

import numpy
from safetensors.numpy import load, save

tensors = {"weight": numpy.arange(6, dtype=numpy.float32)}
six = {name: name * 2 for name in ("recipe", "step", "side", "mean", "layers", "seed")}


def digests(metadata: dict[str, str] | None) -> set[str]:
    return {hashlib.sha256(save(tensors, metadata)).hexdigest() for _ in range(10)}


many, one, none = digests(six), digests({"recipe": "features"}), digests(None)
print(f"with metadata: {'more than one digest' if len(many) > 1 else '1 digest'} of ten files")
print(f"with one entry: {len(one)} digest of ten files")
print(f"without metadata: {len(none)} digest of ten files")
equal = True
for _ in range(10):
    data = save(tensors, six)
    size = int.from_bytes(data[:8], "little")
    equal &= json.loads(data[8 : 8 + size])["__metadata__"] == six and bool((load(data)["weight"] == tensors["weight"]).all())
print(f"tensors and metadata read back: {'equal every time' if equal else 'differ'}")
assert len(many) > 1, "the order is fixed now"
assert (len(one), len(none), equal) == (1, 1, True)
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
