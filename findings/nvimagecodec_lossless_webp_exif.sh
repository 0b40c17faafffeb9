#!/usr/bin/env bash
# nvImageCodec, on its CPU backends, does not decode a lossless WebP that carries Exif metadata; lossy ones with Exif, and lossless ones
# with XMP or a colour profile, it does.
#
# Guess before: a decoder that turns lossy WebP pictures upright by their Exif orientation does so for lossless ones, or ignores the tag.
# Seen with nvidia-nvimgcodec-cu12 0.9.0.20, Pillow 13.0.0 and NumPy 2.4.6, Python 3.11, no GPU; pictures of 80 x 40, orientation 6:
#
#     lossy: (40, 80, 3)
#     lossy, Exif: (80, 40, 3)
#     lossless: (40, 80, 3)
#     lossless, XMP: (40, 80, 3)
#     lossless, colour profile: (40, 80, 3)
#     lossless, Exif: None
#     lossless, alpha and Exif: None
#     lossless, Exif, orientation not asked for: None
#
# Pillow opens every one of them. The library's message on standard error comes from its WebP parser, before any backend is asked. `decode`
# returns None and raises nothing, so a data set of lossless WebP loses exactly the pictures that have Exif unless None is looked for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check nvidia-nvimgcodec-cu12==0.9.0.20 pillow==13.0.0 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import io
import warnings

import numpy as np
from nvidia import nvimgcodec
from PIL import Image

warnings.simplefilter("ignore")
decoder = nvimgcodec.Decoder(device_id=-99999, backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)])  # the number for no device at all
pixels = np.zeros((40, 80, 4), np.uint8)
pixels[:, :40] = 200
turned = Image.Exif()
turned[0x112] = 6


def decoded(name: str, channels: int = 3, orientation: bool = True, **options: object) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, :channels]).save(file, "WEBP", **options)
    Image.open(io.BytesIO(file.getvalue())).load()
    parameters = nvimgcodec.DecodeParams(apply_exif_orientation=orientation)
    try:
        picture = decoder.decode(nvimgcodec.CodeStream(file.getvalue()), params=parameters)
    except RuntimeError as error:
        print(f"{name}: {error}")
        return
    print(f"{name}: {None if picture is None else np.asarray(picture.cpu()).shape}")


decoded("lossy")
decoded("lossy, Exif", exif=turned)
decoded("lossless", lossless=True)
decoded("lossless, XMP", lossless=True, xmp=b"<x/>")
decoded("lossless, colour profile", lossless=True, icc_profile=bytes(200))
decoded("lossless, Exif", lossless=True, exif=turned)
decoded("lossless, alpha and Exif", channels=4, lossless=True, exif=turned)
decoded("lossless, Exif, orientation not asked for", orientation=False, lossless=True, exif=turned)
PYTHON
"$folder/venv/bin/python" "$folder/look.py" 2>"$folder/messages" | tee "$folder/seen" || { cat "$folder/messages" >&2; exit 1; }
sed -n '/^#     /s///p' "$0" | diff - "$folder/seen"
