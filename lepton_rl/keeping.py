"""What an adaptation keeps at every decision, so that a killed one goes on and comes to the same end.

It lies beside `out`, in `OUT.unfinished`, because `out` itself appears whole or not at all: a checkpoint in two
generations, the finished folds of a cross-validation and, for people, `history.jsonl` with the decisions so far.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lepton_rl.arrays import one_line
from lepton_rl.cache import write_atomically
from lepton_rl.checkpoint import Checkpoint, Checkpoints
from lepton_rl.controls import ControlSettings
from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.lock import beside, locked
from lepton_rl.manifest import check_free, recover
from lepton_rl.policy import Policy
from lepton_rl.run import AdaptationRun
from lepton_rl.selection import Candidate
from lepton_rl.stopping import StopRequest, stop_on_signals
from lepton_rl.task import VisibleTask


@dataclass(kw_only=True)
class Trail:
    """A run up to a decision.

    Attributes:
        observation: What the policy sees next, `[1, signals]`.
        candidates: The original and the weights after every decision; with a learned guard after the last one only.
        history: One row per decision, row 0 the start.
        diverged: Whether the run ended because weights became non-finite.
    """

    observation: Tensor
    candidates: list[Candidate]
    history: list[dict[str, Any]]
    diverged: bool = False


class Keeper:
    """Keeps one adaptation; made by `keeping`.

    Args:
        out: Where the result will go.
        overwrite: Whether the output of an earlier command may go from there, and what another unfinished
            adaptation has kept.
        stop: Asked after every decision.
        say: Called with lines that a person should read.
    """

    def __init__(self, out: Path, *, overwrite: bool, stop: StopRequest, say: Callable[[str], None]) -> None:
        self.out, self.overwrite, self._stop, self._say = out, overwrite, stop, say
        self.folder = unfinished(out)
        self._files = Checkpoints(self.folder / "checkpoint.safetensors", "adaptation", say)
        self._arguments: dict[str, Any] = {}

    def check_stop(self, done: str) -> None:
        """Leave, if a signal asked to; `done` is for the message."""
        self._stop.check(done)

    def resume(self, run: AdaptationRun, trail: Trail, arguments: Mapping[str, Any]) -> Trail:
        """Put back what was kept of this very adaptation, if anything was.

        Args:
            run: Just started.
            trail: Its start.
            arguments: All that the run depends on, from `arguments_of`.

        Returns:
            Where to go on from.

        Raises:
            InputError: If something else was kept, or `out` is not free.
        """
        self._arguments = dict(arguments)
        saved = self._files.load()
        if saved is not None and not self._is_mine(saved):
            self.remove()
            saved = None
        if saved is None:
            check_free(self.out, overwrite=self.overwrite)
            return trail
        self.overwrite = True  # what is in `out` was allowed to go when this adaptation began, or is its own result
        try:
            kept = _trail(saved, trail)
            state = {name.removeprefix("run."): t for name, t in saved.tensors.items() if name.startswith("run.")}
            _check_alike(state, run.state(), finite=False)  # losses of a run that diverged are not
            run.load_state(state, [kept.candidates[-1].weights])
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise InputError(
                f"{str(self.folder)!r} holds what no run saved ({one_line(error)}): expected the checkpoint of an "
                "adaptation; remove the folder to begin anew"
            ) from None
        self._say(f"going on after decision {run.decision[0]} of {run.decisions[0]}, from {self.folder}")
        return kept

    def _is_mine(self, saved: Checkpoint) -> bool:
        found = saved.facts.get("arguments")
        found = found if isinstance(found, dict) else {}
        different = [name for name, value in self._arguments.items() if found.get(name) != value]
        if "seed" in different:  # it deals the images, so that these differ with it
            different = [name for name in different if name not in ("source", "target", "normalisation")]
        if different and not self.overwrite:
            raise InputError(
                f"{str(self.folder)!r} holds an unfinished adaptation with another {', '.join(different)}: expected "
                "the same to go on with it; choose another out, or overwrite it to begin anew"
            )
        return not different

    def save(self, run: AdaptationRun, trail: Trail) -> None:
        """Keep a run after a decision.

        Raises:
            Stopped: If a signal came and the run is not over.
        """
        tensors = {"observation": trail.observation} | {f"run.{name}": t for name, t in run.state().items()}
        for number, candidate in enumerate(trail.candidates[1:], start=1):
            tensors |= {f"candidate.{number}.{name}": tensor for name, tensor in candidate.weights.items()}
        facts = {
            "arguments": self._arguments,
            "candidates": [[candidate.name, candidate.score] for candidate in trail.candidates[1:]],
            "history": trail.history,
            "diverged": trail.diverged,
        }
        self._files.save(Checkpoint(tensors=tensors, facts=facts))
        lines = "".join(json.dumps(row) + "\n" for row in trail.history)
        write_atomically(self.folder / "history.jsonl", lines.encode())
        if not run.over[0]:
            self.check_stop(f"decision {run.decision[0]} of {run.decisions[0]}")

    def known(self, name: str, shape: tuple[int, ...], make: Callable[[], dict[str, Tensor]]) -> Mapping[str, Tensor]:
        """Return what was kept under a name beside this very run, or make and keep it.

        Args:
            name: Of the file.
            shape: Of all its tensors, which are finite.
            make: Makes them.

        Raises:
            InputError: If the file holds something else.
            Stopped: If a signal came before they were made.
        """
        files = Checkpoints(self.folder / f"{name}.safetensors", "part of an adaptation", self._say)
        saved = files.load()
        if saved is None or saved.facts.get("arguments") != self._arguments:
            self.check_stop(f"the run, before {name}")
            saved = Checkpoint(tensors=make(), facts={"arguments": self._arguments})
            files.save(saved)
        if any(tensor.shape != shape or not bool(tensor.isfinite().all()) for tensor in saved.tensors.values()):
            raise InputError(f"{str(files.path)!r} holds what no run saved: expected finite {list(shape)}; remove it")
        return saved.tensors

    def remove(self) -> None:
        """Forget everything: the result is in its place, or another one is wanted."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def keeping(out: Path, *, overwrite: bool = False, say: Callable[[str], None] | None = None) -> Iterator[Keeper]:
    """Have `out` to oneself, note SIGTERM and SIGUSR2, and keep what is done until it is in its place.

    Args:
        out: Where the result will go; nothing is written there.
        overwrite: Whether the output of an earlier command may go.
        say: Called with lines that a person should read; default prints them to standard error.

    Raises:
        InputError: If `out` is not free, or another process has it.
    """
    with locked(beside(out), out), stop_on_signals() as stop:
        recover(out)
        kept = unfinished(out)
        if os.path.lexists(kept) and not kept.is_dir():
            raise InputError(f"{str(kept)!r} is a file: expected a folder; move it away, or choose another out")
        check_free(out, overwrite=overwrite or kept.is_dir())
        yield Keeper(out, overwrite=overwrite, stop=stop, say=say or _tell)


def unfinished(out: Path) -> Path:
    """Return the folder for what is kept of an adaptation whose result will go to `out`."""
    out = Path(os.path.abspath(out))  # so that `..` has a name, too
    return out.parent / f"{out.name}.unfinished"


def _tell(line: str) -> None:
    print(f"lepton: {line}", file=sys.stderr)


def _trail(saved: Checkpoint, start: Trail) -> Trail:
    """Read a trail; the original and the layout of its tensors come from one that has just started."""
    original = start.candidates[0]
    candidates = [original]
    for number, (name, score) in enumerate(saved.facts["candidates"], start=1):
        found = {key: saved.tensors[f"candidate.{number}.{key}"] for key in original.weights}
        _check_alike(found, original.weights)
        weights = {key: torch.empty_like(like).copy_(found[key]) for key, like in original.weights.items()}
        candidates.append(Candidate(name=str(name), weights=weights, score=float(score)))
    _check_alike({"observation": saved.tensors["observation"]}, {"observation": start.observation})
    history = saved.facts["history"]
    if len(candidates) not in (2, len(history)) or not all(row.keys() == start.history[0].keys() for row in history):
        raise ValueError(f"history of {len(history)} rows")
    float(history[-1]["seconds"])
    seen = history[0]["observation"]  # the guard looks back at it
    if seen.keys() != start.history[0]["observation"].keys() or not all(
        isinstance(x, int | float) for x in seen.values()
    ):
        raise ValueError("another first observation")
    return Trail(
        observation=saved.tensors["observation"].to(start.observation.device),
        candidates=candidates,
        history=history,
        diverged=bool(saved.facts["diverged"]),
    )


def _check_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, finite: bool = True) -> None:
    """Refuse tensors of another shape or type than a run has, and such as are not finite."""
    for name, like in expected.items():
        tensor = found[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}")
        if finite and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} is not finite")


def arguments_of(task: VisibleTask, policy: Policy, settings: ControlSettings, seed: int) -> dict[str, Any]:
    """Return all that a run depends on, large things as their SHA-256, so that two runs can be told apart."""
    state = task.model.state_dict()
    target = (task.target_support, task.target_probe, task.target_unlabelled)
    return {
        "model": _digest(type(task.model).__qualname__, task.plan, *(part for item in state.items() for part in item)),
        "source": _digest(*_parts(task.source_train, task.source_val)),
        "target": _digest(*_parts(*target)),
        "normalisation": [task.mean.tolist(), task.std.tolist()],
        "policy": _digest(*_policy(policy)),
        "settings": settings.to_json(),
        "class_prior": None if task.class_prior is None else task.class_prior.tolist(),
        "budget": task.budget,
        "seed": seed,
    }


def _parts(*domains: Domain | None) -> Iterator[Any]:
    for domain in domains:
        yield from ("absent",) if domain is None else (domain.images, domain.labels, repr(domain.classes))


def _policy(policy: Policy) -> Iterator[Any]:
    """Yield what a policy is made of, as far as it can be seen: the fields of a dataclass."""
    yield type(policy).__qualname__
    if is_dataclass(policy):
        yield from _leaves(policy)


def _leaves(value: object) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _leaves(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name))
    else:
        yield repr(value)


def _digest(*parts: Any) -> str:  # noqa: ANN401
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(np.ascontiguousarray(part))
        if isinstance(part, Tensor):
            digest.update(f"\n{part.dtype} {list(part.shape)}\n".encode())
            flat = part.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(dtype=torch.uint8).numpy().data if flat.numel() else b"")
        else:
            digest.update(f"\n{part}\n".encode())
    return digest.hexdigest()
