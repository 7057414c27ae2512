"""The untouched network: what a user has before adapting."""

import time
from dataclasses import dataclass

from lepton_rl.agents.arm import SingleArm
from lepton_rl.rollout import RunResult
from lepton_rl.selection import ORIGINAL, visible_score
from lepton_rl.solo import SoloEngine
from lepton_rl.task import VisibleTask


@dataclass(frozen=True, kw_only=True)
class SourceOnly(SingleArm):
    """No step and the source's normalisation statistics; also the zero of the normalised score."""

    def single(self, task: VisibleTask, seed: int) -> RunResult:
        """Load the network and leave it alone."""
        began = time.perf_counter()
        engine = SoloEngine(task)
        engine.load(0, task, seed)
        return RunResult(
            engine=engine,
            chosen=ORIGINAL,
            reason="source-only never adapts",
            score=float(visible_score(engine, engine.views("source"))[0]),
            steps=0,
            seconds=time.perf_counter() - began,
            diverged=False,
        )


ARM = SourceOnly(name="source-only", source="the pretrained network as it is")
