"""The bank of shapes is part of a run: a resume with other shapes is refused by name, the same bank may move, and exports need none."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pipeline import recipes
from pipeline.config import parse
from pipeline.evaluation.of_run import trained_encoder
from pipeline.evaluation.painter import read_painter
from pipeline.masking import MaskConfig, MaskSource, bank_of, mask_source
from pipeline.training.checkpoint.files import COMMIT
from pipeline.training.checkpoint.store import CheckpointInvalid
from pipeline.training.loop import pretrain
from pipeline.training.mask_shapes import changed_shapes, check_ranks
from pipeline.training.supervision.interruption import Interruption
from shards.errors import ShapesError
from shards.shapes.bank import read_bank
from tests.pipeline.masking.banks import bank_file
from tests.pipeline.training.test_loop import run_settings

SQUARE = [[0, 0], [9, 0], [9, 9], [0, 9]]


def train(folder: Path, steps: int, *more: str) -> bool:
    settings = run_settings(folder, steps, "--evaluation.every", "0", "--training.pictures_every", "0", "--method.mask.kind", "region")
    return pretrain(parse(recipes.SETTINGS, [*settings, "--method.mask.overlap", "0", *more]), Interruption()).finished


def facts(folder: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "checkpoints" / f"step_{step:09d}" / COMMIT).read_text())
    return found


def test_a_run_goes_on_with_its_bank_and_with_no_other(tmp_path: Path) -> None:
    bank, other = bank_file(tmp_path / "bank"), bank_file(tmp_path / "other", SQUARE)
    digests = [read_bank(url).digest for url in (bank, other)]
    assert train(tmp_path, 1, "--method.mask.shapes", bank)
    assert facts(tmp_path, 1)["shapes"] == digests[0]
    with pytest.raises(CheckpointInvalid) as refused:
        train(tmp_path, 2, "--method.mask.shapes", other)
    for part in ("step 1 was trained", f"the bank {digests[0][:16]} ({bank})", f"the bank {digests[1][:16]} ({other})", "Set method.mask"):
        assert part in str(refused.value)
    with pytest.raises(CheckpointInvalid, match=r"the bank \w+ \(.*\), and method\.mask\.shapes gives masks of generated shapes here"):
        train(tmp_path, 2)
    elsewhere = ("--run", str(tmp_path / "new"), "--checkpoint.resume", str(tmp_path / "run" / "checkpoints" / "step_000000001"))
    with pytest.raises(CheckpointInvalid, match=r"start a new run with another --run and without --checkpoint\.resume$"):
        train(tmp_path, 2, *elsewhere)
    shutil.move(bank, tmp_path / "moved")
    assert train(tmp_path, 2, "--method.mask.shapes", str(tmp_path / "moved"))
    assert facts(tmp_path, 2)["config"]["method"]["mask"]["shapes"] == str(tmp_path / "moved")
    (tmp_path / "moved").unlink()
    with pytest.raises(ShapesError, match="moved: no such file"):
        train(tmp_path, 3, "--method.mask.shapes", str(tmp_path / "moved"))
    painter = read_painter(str(tmp_path / "run"))  # the networks are used without masks
    assert painter.step == 2
    with pytest.raises(ShapesError, match="moved: no such file"):
        cast("MaskSource", painter.recipe.mask).draw(0, np.zeros((8, 8), np.bool_))
    assert trained_encoder(str(tmp_path / "run"))[0].step == 2


def test_runs_of_versions_without_banks_go_on_and_take_no_bank(tmp_path: Path) -> None:
    before: dict[str, Any] = {"config": {"method": {"mask": {"kind": "region"}}}}
    generated, banked = mask_source(MaskConfig()), mask_source(MaskConfig(shapes=bank_file(tmp_path / "bank")))
    assert changed_shapes(before, generated, "region") == ""
    assert changed_shapes({**before, "shapes": ""}, None, "") == ""
    assert "trained with masks of generated shapes, and method.mask.shapes gives masks of the bank" in changed_shapes(
        before, banked, "region"
    )
    assert changed_shapes({"config": {"method": {}}}, mask_source(MaskConfig(kind="block")), "block") == ""


def test_another_kind_of_mask_is_named_as_such(tmp_path: Path) -> None:
    block, banked = mask_source(MaskConfig(kind="block")), mask_source(MaskConfig(shapes=bank_file(tmp_path / "bank")))
    of_block: dict[str, Any] = {"config": {"method": {"mask": {"kind": "block", "shapes": ""}}}, "shapes": ""}
    of_bank: dict[str, Any] = {"config": {"method": {"mask": {"kind": "region", "shapes": "old"}}}, "shapes": "ab" * 32}
    message = changed_shapes(of_block, banked, "region")
    assert message.startswith("was trained with masks of the kind 'block', and method.mask.kind gives masks of the bank ")
    assert message.endswith("Set method.mask.kind to 'block'")
    message = changed_shapes(of_bank, block, "block")
    assert message.startswith("was trained with masks of the bank abababababababab (old), and method.mask.kind gives masks of the kind")
    assert message.endswith("Set method.mask.kind to 'region'")


@dataclass
class Second:
    """Rank 1 of a run, whose rank 0 has another digest."""

    first: str
    rank: int = 1

    def broadcast(self, value: Any) -> Any:
        return self.first


@pytest.mark.parametrize("one_per_batch", [False, True])
def test_a_rank_with_another_bank_than_the_first_is_refused(one_per_batch: bool, tmp_path: Path) -> None:
    mask = mask_source(MaskConfig(shapes=bank_file(tmp_path / "bank"), one_per_batch=one_per_batch))
    bank = bank_of(mask)
    assert bank is not None
    check_ranks(mask, cast("Any", Second(bank.content.digest)))
    check_ranks(mask_source(MaskConfig()), cast("Any", None))
    with pytest.raises(
        ShapesError, match=r"method\.mask\.shapes: .*bank on rank 1 is the bank \w{16}, and on rank 0 it is ffffffffffffffff"
    ):
        check_ranks(mask, cast("Any", Second("f" * 64)))
