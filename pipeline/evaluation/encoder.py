"""A trained encoder for use: loaded from an exported file or folder or from a run, with its transform, and read layer by layer."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.evaluation.architecture import EncoderInvalid, built
from pipeline.evaluation.facts import EncoderFacts, Transform
from pipeline.evaluation.of_run import exported, initial_encoder, trained_encoder
from pipeline.spelling import nearest
from shards.counting import counted
from shards.store import Options, Store
from shards.urls import redacted, split

__all__ = ["EncoderFacts", "EncoderInvalid", "Transform", "layer_outputs", "layers", "load_encoder", "random_start", "read_encoder"]
WEIGHTS, CONFIG, CARD = "encoder.safetensors", "config.json", "README.md"
"""Files of an exported folder: the weights with all facts in their metadata, the same facts as JSON, and the model card."""
_READ_BY_PROBES = (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d)


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder as it was read.

    Attributes:
        facts: all that is known of the encoder.
        weights: tensors by name, `conv1.weight`.
    """

    facts: EncoderFacts
    weights: dict[str, Tensor]

    def module(self) -> nn.Sequential:
        """Builds the network around the weights, in evaluation mode.

        Raises:
            EncoderInvalid: the weights do not fit the layers.
        """
        return built(self.facts.layers, self.weights)


def load_encoder(path: str | Path, options: Options | None = None, step: int | None = None) -> tuple[nn.Sequential, Transform]:
    """Loads a trained encoder for use.

    Args:
        path: exported folder or .safetensors file, or a run folder, or the folder or URL of a run's checkpoints. All may be URLs.
        options: options of the store, as in fsspec.
        step: step of a run's checkpoint; None takes the newest that verifies.

    Returns:
        The network in evaluation mode, with named layers (conv1, relu1, ...), that turns float32 (n, 3, side, side) into the maps of its
        last layer; and the transform that makes its input from pixels.

    Raises:
        EncoderInvalid: there is no encoder, or a damaged one.
        CheckpointInvalid: no checkpoint of the run verifies.
        StoreError: the store does not answer.
    """
    found = read_encoder(path, options, step)
    return found.module(), found.facts.transform


def read_encoder(path: str | Path, options: Options | None = None, step: int | None = None) -> TrainedEncoder:
    """Reads an encoder with all that is known of it; arguments and errors as in `load_encoder`."""
    text = str(path).rstrip("/")
    if text.endswith(".onnx"):
        raise EncoderInvalid(f"{redacted(text)}: ONNX is for other programs. Name the run, or an export as safetensors or as a folder")
    if text.endswith(".safetensors"):
        found = _from_file(text, options)
    elif Store(text, options).size(CONFIG) is not None:
        found = _from_file(f"{text}/{WEIGHTS}", options)
    else:
        return TrainedEncoder(*trained_encoder(text, step, options))
    if step not in (None, found.facts.step):
        raise EncoderInvalid(
            f"{redacted(text)}: holds the encoder after {counted(found.facts.step, 'step')}, not {step}. Name the run instead"
        )
    return found


def layers(module: nn.Module) -> list[str]:
    """Names of the layers that a probe reads: the outputs of rectifiers and poolings, from the first to the last."""
    return [name for name, layer in module.named_children() if isinstance(layer, _READ_BY_PROBES)]


def layer_outputs(module: nn.Module, inputs: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Runs a batch through the chain up to the last layer that is asked for, and keeps the outputs of some layers.

    Args:
        module: network of `load_encoder`, or any chain of named layers.
        inputs: float (n, 3, side, side), as the transform gives them.
        names: names of the layers, in any order.

    Returns:
        Name -> output of the layer, float (n, maps, height, width), in the order of the layers.

    Raises:
        EncoderInvalid: no layer of that name.
    """
    wanted, chain = set(names), dict(module.named_children())
    for name in sorted(wanted - chain.keys()):
        raise EncoderInvalid(f"the encoder has no layer {name!r}{nearest(name, chain, listed=True)}")
    outputs: dict[str, Tensor] = {}
    values = inputs
    for name, layer in chain.items():
        if len(outputs) == len(wanted):
            break
        if getattr(layer, "inplace", False):
            values = values.clone()  # else the layer would change the output of the one before
        values = layer(values)
        if name in wanted:
            outputs[name] = values
    return outputs


def random_start(facts: EncoderFacts, seed: int) -> nn.Sequential:
    """Makes the untrained encoder of the same architecture, as a run of that seed has it at step 0, in evaluation mode.

    Args:
        facts: facts of a trained encoder.
        seed: seed of the run; the seed of the facts gives the start of the very run that trained the encoder.

    Raises:
        EncoderInvalid: the recipe of the encoder is not here, or does not know its settings.
    """
    recipe, encoder = initial_encoder(facts.recipe, facts.method, facts.player, seed, "the random start")
    return built(facts.layers, exported(recipe, {name: tensor.detach() for name, tensor in encoder.state_dict().items()}))


def _from_file(url: str, options: Options | None) -> TrainedEncoder:
    folder, name = split(url)
    store = Store(folder, options)
    data, where = store.whole(name), store.describe(name)
    if data is None:
        raise EncoderInvalid(f"{where}: no such file. Write it with launch/export.py")
    try:
        weights = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        raise EncoderInvalid(f"{where}: not a safetensors file ({' '.join(str(error).split())})") from error
    return TrainedEncoder(EncoderFacts.from_metadata(header.get("__metadata__") or {}, where), weights)
