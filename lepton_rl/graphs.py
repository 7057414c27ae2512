"""Recorded gradient steps: one launch for the hundreds of small operations of a fleet's step.

A step of one kind is the same operations on other numbers (`step.py`), so it can be recorded once and played again on
buffers that the new numbers are copied into. On CUDA the recording is a CUDA graph.

The rule: the first `WARM_UP` steps of a kind are taken eagerly, which also warms the device up; then the step is
recorded, and its first replay is compared with an eager step from the same state. Where they differ, or recording
fails, all further steps are eager and a warning says so. A recording lasts as long as what it reads and writes stays
in its place.

Source: NVIDIA, "CUDA Graphs"; the procedure of torch.cuda.CUDAGraph's documentation.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from lepton_rl.step import StepInputs, StepKind

WARM_UP = 3  # eager steps of a kind before it is recorded
MOST = 32  # recordings kept; each holds the activations of a step
TOLERANCE = 1e-3  # between the first replay and an eager step, as a share of each tensor's norm

Work = Callable[[], Tensor]


class Recorder(Protocol):
    """Records work without doing it."""

    def warm(self, work: Work) -> Tensor:
        """Do the work eagerly, where it would be recorded."""
        ...

    def record(self, work: Work, leaves: Sequence[Tensor]) -> Work:
        """Return what does the work again, leaving gradients in `leaves`; the work itself is not done."""
        ...


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory as they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm(self, work: Work) -> Tensor:
        """Do the work on the stream that is recorded on."""
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream):
            out = work()
        caller.wait_stream(self.stream)
        out.record_stream(caller)
        return out

    def record(self, work: Work, leaves: Sequence[Tensor]) -> Work:
        """Record a graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            out = work()
        gradients = [leaf.grad for leaf in leaves]

        def replay() -> Tensor:
            graph.replay()
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            return out

        return replay


@dataclass(frozen=True, kw_only=True)
class _Recording:
    buffers: StepInputs
    replay: Work


class RecordedSteps:
    """Takes steps, by playing a recording where there is one.

    Args:
        recorder: How to record.
        step: The step.
        state: All tensors that a step changes.
        leaves: Parameters whose gradients are read after a step.
        place: Tells where everything lies that a step reads; a recording is used only while this is as it was.
    """

    def __init__(
        self,
        recorder: Recorder,
        step: Callable[[StepKind, StepInputs], Tensor],
        *,
        state: Callable[[], list[Tensor]],
        leaves: Sequence[Tensor],
        place: Callable[[], tuple[object, ...]],
    ) -> None:
        self.recorder, self.step, self.state, self.leaves, self.place = recorder, step, state, leaves, place
        self.broken = False
        self.replays = 0
        self._seen: dict[tuple[object, ...], int] = {}
        self._recordings: OrderedDict[tuple[object, ...], _Recording] = OrderedDict()

    def run(self, kind: StepKind, inputs: StepInputs) -> Tensor:
        """Take a step and return its loss terms."""
        if self.broken:
            return self.step(kind, inputs)
        key = (kind, *self.place())
        recording = self._recordings.get(key)
        if recording is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= WARM_UP:
                return self.recorder.warm(lambda: self.step(kind, inputs))
            return self._record(key, kind, inputs)
        self._recordings.move_to_end(key)
        return self._play(recording, inputs)

    def _play(self, recording: _Recording, inputs: StepInputs) -> Tensor:
        for field in fields(StepInputs):
            getattr(recording.buffers, field.name).copy_(getattr(inputs, field.name))
        self.replays += 1
        return recording.replay().clone()

    def _record(self, key: tuple[object, ...], kind: StepKind, inputs: StepInputs) -> Tensor:
        """Record a step, play it once and keep it if that is what the eager step does; the eager one counts."""
        buffers = StepInputs(**{field.name: getattr(inputs, field.name).clone() for field in fields(StepInputs)})
        before = [tensor.detach().clone() for tensor in self.state()]
        problem = None
        played: list[Tensor] = []
        try:
            replay = self.recorder.record(lambda: self.step(kind, buffers), self.leaves)
            played = [replay().clone(), *(tensor.detach().clone() for tensor in self.state())]
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
        with torch.no_grad():
            for tensor, value in zip(self.state(), before, strict=True):
                tensor.copy_(value)
        terms = self.step(kind, inputs)
        if problem is None and not _alike(played, [terms, *self.state()]):
            problem = "a replay differs from the step it was made of"
        if problem is not None:
            self._give_up(problem)
            return terms
        self._recordings[key] = _Recording(buffers=buffers, replay=replay)
        if len(self._recordings) > MOST:
            old, _ = self._recordings.popitem(last=False)
            self._seen.pop(old)
        return terms

    def _give_up(self, problem: str) -> None:
        self.broken = True
        self._recordings.clear()
        warnings.warn(f"steps are not recorded, which is slower: {problem}", RuntimeWarning, stacklevel=2)


def _alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Return whether all tensors agree up to rounding; what is not finite must be so in both."""
    for mine, other in zip(ours, theirs, strict=True):
        finite = other.detach().isfinite()
        if not torch.equal(mine.isfinite(), finite):
            return False
        gap, size = (torch.where(finite, x, 0.0).norm() for x in (mine - other.detach(), other.detach()))
        # By norms: Adam turns rounding into a full step where a gradient is next to nothing.
        if bool(gap > TOLERANCE * (size + 1e-6)):
            return False
    return True
