"""The README.md beside an exported encoder: what it is, its input, its use with and without this package, its scores, its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.facts import EncoderFacts, Origin
from pipeline.recipes import RECIPES
from shards.counting import counted

WITH_PACKAGE = """\
import torch
from pipeline.evaluation.encoder import layer_outputs, layers, load_encoder

encoder, transform = load_encoder("encoder")  # the folder, its encoder.safetensors, or a run
inputs = transform.picture("photo.jpg")  # float32 (1, 3, {side}, {side})
with torch.no_grad():
    maps = encoder(inputs)  # float32 (1, {maps}, {height}, {width})
    by_layer = layer_outputs(encoder, inputs, layers(encoder))  # by name: {names}
"""
PLAIN_TORCH = """\
import json, numpy, torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

config = json.load(open("encoder/config.json"))
encoder = torch.nn.Sequential()
for layer in config["layers"]:
    encoder.add_module(layer["name"], getattr(torch.nn, layer["kind"])(**layer["arguments"]))
encoder.load_state_dict(load_file("encoder/encoder.safetensors"))
side, whole = config["side"], max(config["side"], config["shorter_side"])
upright, edge = ImageOps.exif_transpose(Image.open("photo.jpg")), (whole - side) // 2
picture = ImageOps.fit(upright.convert("RGB"), (whole, whole))
pixels = torch.tensor(numpy.array(picture))[edge : edge + side, edge : edge + side]
inputs = (pixels - torch.tensor(config["mean"])) / config["divisor"]
maps = encoder.eval()(inputs.permute(2, 0, 1)[None])
"""
"""Use of an exported folder with torch, safetensors, NumPy and Pillow alone; README.md shows the same lines."""
_HEAD = """\
---
library_name: pytorch
pipeline_tag: image-feature-extraction
tags: [{tags}]
---

# {title}

An encoder that was trained with the code of context encoders ([Pathak et al., CVPR 2016](https://arxiv.org/abs/1604.07379)): a chain of
{count} layers that learned by the recipe `{recipe}`, and turns a picture into {maps} maps of {height} x {width}.

| file | what |
|---|---|
| `encoder.safetensors` | the weights; all facts below are in its metadata, too |
| `config.json` | the same facts: layers in order with their arguments, input, training, scores |

## Input

Float32 (n, 3, {side}, {side}), channels in the order R, G, B. A value v of 0 to 255 becomes (v - mean) / {divisor:g} with mean {mean}.
Training cuts its crops at the scale of the stored pictures: turn a picture upright, resize it to a shorter side of {shorter_side} pixels,
and take its middle. {origin} Missing pixels were filled with {fill}.
"""
_ORIGINS: dict[Origin, str] = {
    "data set": "That is the scale of the data set that it was trained on.",
    "option": "That scale was given when the encoder was exported.",
    "assumed": "That scale is assumed, because the run does not say what shorter side its pictures were stored at.",
}
_LIMITS = """\
## What it is not good for

- It is no classifier and paints nothing: it is the first part of a network, and what comes out are features for a model that you train
  on top of it.
{weaker}- It has learned what its training pictures show, with all that is over- or under-represented in them.
  Whether their licence allows your use is not known here.
- Other inputs than the one above (B, G, R; values in [0, 1]; ImageNet's deviation as divisor) give features without a warning.
"""
_WEAKER = """\
- Frozen features of pretext tasks are weaker than those of networks trained with labels. In the literature a linear model on a context
  encoder's gains 1 to 4 points over random weights, most at the middle layers. Compare with the random start on your own task before you
  rely on it.
"""


def model_card(facts: EncoderFacts) -> str:
    """Writes the model card of an encoder as Markdown."""
    maps, height, width = facts.output
    names = f"{facts.names[0]}, ..., {facts.names[-1]}"
    shape = {"maps": maps, "height": height, "width": width, "side": facts.side, "names": names}
    learned_labels = hasattr(RECIPES.get(facts.recipe), "check_labels")  # as a LabelledRecipe has
    head = _HEAD.format(
        tags=", ".join(("context-encoder", *(() if learned_labels else ("self-supervised",)), "safetensors")),
        title=f"{facts.recipe} encoder after {counted(facts.step, 'step')}",
        count=len(facts.layers),
        recipe=facts.recipe,
        divisor=facts.divisor,
        mean=_colour(facts.mean),
        fill=_colour(facts.fill),
        shorter_side=facts.shorter_side,
        origin=_ORIGINS[facts.shorter_side_from],
        **{name: shape[name] for name in ("maps", "height", "width", "side")},
    )
    sections = (
        head,
        "## Use\n\n`encoder` is the path of this folder. With the package that trained it:\n\n"
        f"```python\n{WITH_PACKAGE.format(**shape)}```\n\n"
        f"With torch, safetensors, NumPy and Pillow alone:\n\n```python\n{PLAIN_TORCH}```\n",
        f"## Layers\n\n| layer | kind | arguments |\n|---|---|---|\n{_layers(facts)}",
        f"## Training\n\n{_training(facts)}",
        f"## Scores\n\n{_scores(facts)}",
        _LIMITS.format(weaker="" if learned_labels else _WEAKER),
    )
    return "\n".join(sections)


def _colour(values: tuple[float, float, float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _layers(facts: EncoderFacts) -> str:
    rows = []
    for layer in facts.layers:
        arguments = ", ".join(f"{name}={value}" for name, value in layer.arguments.items())
        rows.append(f"| `{layer.name}` | {layer.kind} | {arguments} |\n")
    return "".join(rows)


def _training(facts: EncoderFacts) -> str:
    rows = {
        "recipe": f"`{facts.recipe}`{f', layout `{facts.layout}`' if facts.layout else ''}",
        "steps": f"{facts.step:,}, each of {counted(facts.global_batch, 'picture')}",
        "seed": str(facts.seed),
        "data set": ", ".join(f"{f'{name} ' if name else ''}`{value}`" for name, value in facts.data_sets.items())
        + " (fingerprint, as `python -m shards inspect` shows it)",
        "torch": facts.torch,
    }
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def _scores(facts: EncoderFacts) -> str:
    """A table of the evaluation on held-back pictures beside the baselines and the random start."""
    if facts.scores is None:
        return "The run kept no evaluation on held-back pictures up to this step.\n"
    rows = [(f"this encoder's network, step {facts.scores['step']:,}", facts.scores)]
    if facts.start is not None:
        rows.append(("its random start", facts.start))
    baselines = facts.scores.get("baselines") or {}
    rows += [(f"baseline: {name.replace('_', ' ')}", figures) for name, figures in baselines.items()]
    pictures = facts.scores.get("pictures")
    shown = counted(pictures, "picture") if isinstance(pictures, int) else "pictures"
    if "accuracy" in facts.scores:
        what, columns = f"Classes named on {shown} that were held back from training.", {"loss": "loss", "accuracy": "accuracy"}
    else:
        what = f"Dropped pixels of {shown} that were held back from training. L1 and L2 are in per cent of the range, PSNR in dB."
        columns = {"loss": "loss", "l1": "L1", "l2": "L2", "psnr": "PSNR"}
    lines = [
        what,
        "",
        f"| | {' | '.join(columns.values())} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(_figure(row, key) for key in columns)} |" for name, row in rows),
    ]
    if isinstance(probe := facts.scores.get("probe"), dict):
        figures = ", ".join(f"{name} {_figure(probe, name)}" for name in probe)
        lines += ["", f"Small probe of the frozen features: {figures}."]
    return "\n".join(lines) + "\n"


def _figure(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return f"{value:.4g}" if isinstance(value, (int, float)) else "-"
