"""A stand-in for a GPU, for machines without one."""

from __future__ import annotations


class Card:
    """A GPU with constant readings."""

    def memory_used(self) -> float:
        return 3e9

    def memory_total(self) -> float:
        return 8e10

    def utilisation(self) -> float:
        return 0.75
