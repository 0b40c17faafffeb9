#!/usr/bin/env bash
# torch's FlopCounterMode counts an nn.TransformerEncoderLayer in evaluation as 0 operations as soon as gradients are off, and an nn.LSTM on
# a CPU as 0, and warns of neither.
#
# Guess before: the counter sees the matrix products that every module is made of, so the count of a forward depends neither on the
# gradients nor on the mode, and a layer that it knew nothing of would be named.
# Seen with torch 2.13.0, Python 3.11, on a CPU:
#
#     encoder layer, training: 3072
#     encoder layer, evaluation: 3072
#     encoder layer, evaluation without gradients: 0
#     GRU: 864
#     LSTM: 0
#     LSTM cell by cell: 1152
#     matrix times column: 48
#     matrix times vector: 0
#
# In evaluation without gradients the encoder layer is one fused operation (torch._transformer_encoder_layer_fwd), and the LSTM one of
# oneDNN's; the counter has a formula for neither, nor for products with a vector (mv), and what has no formula counts as nothing. So the
# inference of a transformer that is counted as usual, under model.eval() and torch.no_grad(), costs nothing: count with gradients enabled,
# and compare with a count by hand. (3072 lacks the attention itself, 288, which is also one operation without a formula on a CPU.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 'numpy<3' setuptools
cat > "$folder/look.py" <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def counted(module: nn.Module, *inputs: torch.Tensor, gradients: bool = True) -> int:
    with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


class Product(nn.Module):
    def forward(self, matrix: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return matrix @ other


layer, words = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), torch.randn(1, 3, 8)
print(f"encoder layer, training: {counted(layer, words)}")
print(f"encoder layer, evaluation: {counted(layer.eval(), words)}")
print(f"encoder layer, evaluation without gradients: {counted(layer.eval(), words, gradients=False)}")
print(f"GRU: {counted(nn.GRU(8, 4), words)}")
print(f"LSTM: {counted(nn.LSTM(8, 4), words)}")
print(f"LSTM cell by cell: {counted(nn.LSTMCell(8, 4), words[0])}")
print(f"matrix times column: {counted(Product(), words[0], torch.randn(8, 1))}")
print(f"matrix times vector: {counted(Product(), words[0], torch.randn(8))}")
PYTHON
found=$("$folder/venv/bin/python" "$folder/look.py" 2> "$folder/log") || { tail -5 "$folder/log"; exit 1; }
printf '%s\n' "$found"
expected="encoder layer, training: 3072
encoder layer, evaluation: 3072
encoder layer, evaluation without gradients: 0
GRU: 864
LSTM: 0
LSTM cell by cell: 1152
matrix times column: 48
matrix times vector: 0"
[ "$found" = "$expected" ] || { echo "this is no longer what was seen"; exit 1; }
