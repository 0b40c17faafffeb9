"""Where the time of a training step goes, layer by layer, forward and backward, from torch's profiler.

A layer's range surrounds its forward; the nodes of the backward pass are found by the sequence numbers that autograd gives to the forward's
operations. So layers that work in place, and what a forward computes outside of its inner layers, are counted like any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from benchmarks.step_side import finished

if TYPE_CHECKING:
    from benchmarks.step_side import Side

_LAYER, _PART, _NODE, _OPTIMISER = "layer:", "part:", "autograd::engine::evaluate_function: ", "Optimizer."
FORWARD, BACKWARD = 0, 1
REST = "losses, and all that is in no other line"


@contextmanager
def _ranges(side: Side) -> Iterator[None]:
    """Surrounds the forward of every layer, and the parts that the side names, with ranges of the profiler."""
    opened: list[record_function] = []
    hooks = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            opened.append(record_function(name))
            opened[-1].__enter__()  # type: ignore[no-untyped-call]

        return hook

    def leave(*_: object) -> None:
        opened.pop().__exit__(None, None, None)

    for player, network in side.networks.items():
        for name, layer in network.named_modules():
            label = f"{_LAYER}{player}{'.' * bool(name)}{name}"
            hooks += [layer.register_forward_pre_hook(enter(label)), layer.register_forward_hook(leave)]
    parts = side.parts()
    for owner, method, name in parts:
        setattr(owner, method, _ranged(getattr(owner, method), f"{_PART}{name}"))
    try:
        yield
    finally:
        for owner, method, _ in parts:
            delattr(owner, method)  # the class's own method shows again
        for each in hooks:
            each.remove()


def _ranged(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        with record_function(name):
            return method(*arguments, **named)

    return call


class _Times:
    """Sums the times of a profile by layers and parts.

    Args:
        unit: attribute of an event with the time that it took without the events in it, in microseconds.

    Attributes:
        rows: microseconds of forward and of backward by the name of a layer or part, in the order of the first forward.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._owner_of: dict[int, str] = {}
        self.rows: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, events: list[Any]) -> None:
        """Adds the events of a profile that no other event surrounds."""
        nodes: list[Any] = []
        for event in events:
            self._forward(event, REST, nodes)
        for node in nodes:
            owner = "gradients, added up" if "AccumulateGrad" in node.name else self._maker(node)
            self.rows[owner][BACKWARD] += self._whole(node)

    def _forward(self, event: Any, owner: str, nodes: list[Any]) -> None:
        """Gives the time of an event and of those in it to the nearest range, and notes whose nodes of the backward pass they made."""
        if event.name.startswith(_NODE):
            nodes.append(event)
            return
        if event.name.startswith((_LAYER, _PART)):
            owner = event.name.partition(":")[2]
        elif event.name.startswith(_OPTIMISER):
            owner = "optimiser"
        elif event.sequence_nr >= 0:
            self._owner_of[event.sequence_nr] = owner  # the last operation that saw a number is the one that made its node
        self.rows[owner][FORWARD] += getattr(event, self._unit)
        for child in sorted(event.cpu_children, key=_start):
            self._forward(child, owner, nodes)

    def _maker(self, node: Any) -> str:
        return next((self._owner_of[each.sequence_nr] for each in node.cpu_children if each.sequence_nr in self._owner_of), REST)

    def _whole(self, event: Any) -> float:
        own: float = getattr(event, self._unit)
        return own + sum(map(self._whole, event.cpu_children))


def _start(event: Any) -> float:
    start: float = event.time_range.start
    return start


def measured(side: Side, count: int) -> dict[str, Any]:
    """Profiles `count` steps after one that is not measured.

    Returns:
        `rows`: (name, milliseconds a step forward, the same backward); `step`: milliseconds of a profiled step. What the rows lack of it
        is the time between operations.
    """
    on_gpu = side.device.type == "cuda"
    side.step()
    with _ranges(side):
        began = finished(side.device)
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
            for _ in range(count):
                side.step()
            taken = finished(side.device) - began
    times = _Times("self_device_time_total" if on_gpu else "self_cpu_time_total")
    events = [event for event in profiler.events() or () if event.device_type == DeviceType.CPU and event.cpu_parent is None]
    times.add(sorted(events, key=_start))
    rows = [(name, *(microseconds / 1000 / count for microseconds in pair)) for name, pair in times.rows.items()]
    return {"rows": rows, "step": 1000 * taken / count}
