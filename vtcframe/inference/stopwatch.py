"""Wall time of the steps of a run, including the work of the device."""

import time
from collections.abc import Mapping
from typing import Any

import torch


class Stopwatch:
    """Measures consecutive steps: `lap(name)` ends a step.

    Work on an accelerator is asynchronous. On CUDA devices each lap records an event and `seconds` waits for the last
    one, so that measuring a run adds no synchronisation to it; other accelerators are synchronised at each lap.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: list[str] = []
        self._marks: list[Any] = [self._mark()]

    def lap(self, name: str) -> None:
        """End the step that began with the construction or the previous lap. A repeated name adds up."""
        self._names.append(name)
        self._marks.append(self._mark())

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of each step, in the order of their first laps."""
        if self._device.type == "cuda":
            self._marks[-1].synchronize()
        seconds: dict[str, float] = {}
        for name, start, end in zip(self._names, self._marks, self._marks[1:], strict=False):
            elapsed = start.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - start
            seconds[name] = seconds.get(name, 0.0) + elapsed
        return seconds

    def _mark(self) -> Any:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            return event
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()
