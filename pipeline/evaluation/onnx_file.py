"""An encoder as one ONNX file for any number of pictures, compared with torch by onnxruntime before anybody gets it. Needs the extra
`onnx`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.evaluation.architecture import EncoderInvalid
from pipeline.evaluation.encoder import TrainedEncoder
from shards.counting import counted

INPUT, OUTPUT = "images", "maps"
TOLERANCE = 1e-4
"""Largest difference between onnxruntime and torch, over the largest output where that is above 1."""
_BATCHES = (1, 3)  # neither is the size that is traced
_TRACED = 2
_EXPORTER = "torch.onnx._internal.exporter._registration"  # logger that warns of a torchvision that nothing here needs


def onnx_bytes(encoder: TrainedEncoder) -> bytes:
    """Converts an encoder to ONNX and proves that onnxruntime computes what torch computes, for two sizes of a batch.

    Returns:
        Bytes of the file. Input `images`, float32 (n, 3, side, side), already centred and divided; output `maps`, float32 (n, maps, height,
        width). The metadata are those of the safetensors file.

    Raises:
        EncoderInvalid: the extra `onnx` is not installed, or the outputs differ.
    """
    try:
        import onnx  # noqa: PLC0415  # optional
        import onnxruntime  # noqa: F401, PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise EncoderInvalid(f"ONNX needs the package {error.name}: pip install -e '.[onnx]'") from error
    network, side = encoder.module(), encoder.facts.side
    with _quiet():
        program = torch.onnx.export(
            network,
            (torch.zeros(_TRACED, 3, side, side),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    assert program is not None  # noqa: S101  # only an export to a file returns nothing
    model = program.model_proto
    for described in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del described.metadata_props[:]  # traces of this machine's source files
    onnx.helper.set_model_props(model, encoder.facts.to_metadata())
    data: bytes = model.SerializeToString()
    compare(data, network, side)
    return data


def compare(data: bytes, network: nn.Module, side: int) -> None:
    """Compares onnxruntime with torch on random inputs.

    Args:
        data: bytes of the ONNX file.
        network: network that the file should compute, in evaluation mode.
        side: side of the input in pixels.

    Raises:
        EncoderInvalid: the outputs differ by more than TOLERANCE, or have another shape.
    """
    import onnxruntime  # noqa: PLC0415  # optional

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(0)
    for count in _BATCHES:
        inputs = torch.randn(count, 3, side, side, generator=random)
        with torch.no_grad():
            expected = network(inputs)
        found = torch.from_numpy(session.run([OUTPUT], {INPUT: inputs.numpy()})[0])
        if found.shape != expected.shape:
            raise EncoderInvalid(f"onnxruntime gives {tuple(found.shape)} for {counted(count, 'picture')}, torch {tuple(expected.shape)}")
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:
            raise EncoderInvalid(
                f"onnxruntime differs from torch by {difference:.1e} for {counted(count, 'picture')}, more than {TOLERANCE:.0e}"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings of the exporter that are about its own insides."""
    logger: Any = logging.getLogger(_EXPORTER)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(before)
