"""The requests and bytes of samples that are read as ranges, neighbours joined as `pipeline.stream.read.fetch` joins them.

All figures are expectations over the shuffle of a block: a batch draws m of a block's L consecutive samples at random.
"""

from __future__ import annotations

import numpy as np

from pipeline.stream.read.fetch import joined_gap


class JoinedRanges:
    """Requests for random samples of a block.

    Args:
        block: samples that are shuffled together.
        drawn: samples of the block that a rank takes for a batch.
        stride: mean bytes from a sample to the next in its shard.
        picture: mean bytes of a picture.
    """

    def __init__(self, block: int, drawn: int, stride: float, picture: float) -> None:
        space = max(stride - picture, 0.0)  # between a picture and the next in the tar
        most = joined_gap(picture)
        farthest = min(1 + int((most - space) / stride), block - 1) if space <= most and min(block, drawn) > 1 else 0
        distance = np.arange(1, farthest + 1, dtype=np.float64)
        # probability that a sample and the one at this distance are drawn, and none in between
        shrink = np.maximum(block - drawn - distance[:-1] + 1, 0.0) / np.maximum(block - distance[:-1] - 1, 1.0)
        chance = np.cumprod(np.concatenate([[drawn * (drawn - 1) / (block * (block - 1))], shrink])) if farthest else np.empty(0)
        gap = (distance - 1) * stride + space
        self._sums = [
            np.concatenate([[0.0], np.cumsum(part)]) for part in (chance, chance * distance, chance * gap, chance * gap * distance)
        ]
        self._farthest = farthest

    def joined(self, rows: int) -> tuple[float, float]:
        """The requests that joining saves in a batch, and the bytes that it reads in between.

        Args:
            rows: samples of the block in one shard.
        """
        reach = min(self._farthest, max(rows - 1, 0))
        joins, far, gaps, far_gaps = (float(part[reach]) for part in self._sums)
        return rows * joins - far, rows * gaps - far_gaps
