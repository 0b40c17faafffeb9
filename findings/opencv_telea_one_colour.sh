#!/usr/bin/env bash
# OpenCV's Telea inpainting does not keep one colour: a hole in an 8-bit picture that is 200 everywhere is filled with values up to 210,
# more with the size of the hole, and in a float32 picture that is 0.7 everywhere with values from -0.8 to 2.3. Navier-Stokes keeps the
# value.
#
# Guess before: each filled pixel is a weighted mean of known neighbours, so a picture of one value stays as it is to the bit.
# Seen with opencv-python-headless 5.0.0.93 and NumPy 2.4.6, radius 3, square holes in grey pictures of 128 x 128; lowest and highest error:
#
#     value  30, hole   8: Telea  -1 +2, Navier-Stokes +0 +0
#     value  30, hole  32: Telea  -1 +4, Navier-Stokes +0 +0
#     value  30, hole 100: Telea  -1 +9, Navier-Stokes +0 +0
#     value 128, hole   8: Telea  +0 +0, Navier-Stokes +0 +0
#     value 128, hole  32: Telea  +0 +0, Navier-Stokes +0 +0
#     value 128, hole 100: Telea  +0 +0, Navier-Stokes +0 +0
#     value 200, hole   8: Telea  -1 +2, Navier-Stokes +0 +0
#     value 200, hole  32: Telea  -1 +4, Navier-Stokes +0 +0
#     value 200, hole 100: Telea  -1 +10, Navier-Stokes +0 +0
#     0.5 as float32, hole 100: Telea +0 +0
#     0.7 as float32, hole 100: Telea -1.5 +1.6
#
# 128 and 0.5 stay, 30, 200 and 0.7 don't; probably the method, which goes on along the gradient of pixels that it has filled before,
# takes the rounding of its own sums for a gradient. An inpainting network that is compared with Telea's fill of large holes is compared
# with a shift of brightness of up to four per cent, and a float32 picture, which OpenCV accepts, must be turned into 8 bits first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check opencv-python-headless==5.0.0.93 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import cv2
import numpy as np


def error(value: float, hole: int, method: int, kind: type = np.uint8) -> str:
    picture, mask = np.full((128, 128), value, kind), np.zeros((128, 128), np.uint8)
    edge = (128 - hole) // 2
    mask[edge : edge + hole, edge : edge + hole] = 1
    difference = cv2.inpaint(picture, mask, 3, method).astype(np.float64) - picture
    return f"{difference.min():+.2g} {difference.max():+.2g}"


for value in (30, 128, 200):
    for hole in (8, 32, 100):
        telea, navier_stokes = error(value, hole, cv2.INPAINT_TELEA), error(value, hole, cv2.INPAINT_NS)
        print(f"value {value:3}, hole {hole:3}: Telea  {telea}, Navier-Stokes {navier_stokes}")
for value in (0.5, 0.7):
    print(f"{value} as float32, hole 100: Telea {error(value, 100, cv2.INPAINT_TELEA, np.float32)}")
PYTHON
"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
sed -n '/^#     /s///p' "$0" | diff - "$folder/seen"
