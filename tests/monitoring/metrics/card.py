"""A GPU for machines without one."""

from __future__ import annotations


class Card:
    """A GPU that reads the same at any time."""

    def memory_used(self) -> float:
        return 3e9

    def memory_total(self) -> float:
        return 8e10

    def utilisation(self) -> float:
        return 0.75
