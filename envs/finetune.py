"""The scalar environment `lepton_rl/FineTune-v0`."""

from typing import Any

import gymnasium
import numpy as np

from lepton_rl.controls import ControlSettings
from lepton_rl.datasets import SuiteSource
from lepton_rl.envs.session import Session, SessionConfig
from lepton_rl.envs.spaces import action_space, observation_space
from lepton_rl.signals import SIGNALS
from lepton_rl.suite import Suite
from lepton_rl.task import Regime


class FineTuneEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Steer one fine-tuning run from a source to a target domain.

    ## Description
    An episode is one adaptation run of a small pretrained network on one task of a suite. A decision moves the
    knobs, then the engine takes the gradient steps up to the next decision (the task's budget divided by 8).

    ## Action Space
    `MultiDiscrete([3, 5, 5, 5, 5, 5, 5, 5, 5, 2, 3, 2])`; every sub-action is relative, and keeping everything
    (`lepton_rl.controls.KEEP`) is the tuned default.

    | Num | Knob | Actions | Range |
    |---|---|---|---|
    | 0 | unfreeze | freeze one stage, keep, unfreeze one stage | head only (0) .. all (4) |
    | 1 | learning rate | /6, /2.5, keep, x2.5, x6 | 1e-5 .. 3e-2, cosine over the budget |
    | 2 | weight: source cross-entropy | /6, /2.5, keep, x2.5, x6 | 0 (off), 0.01 .. 10 |
    | 3 | weight: alignment (MMD + CORAL) | same | same |
    | 4 | weight: adversarial (DANN, gradient reversal) | same | same |
    | 5 | weight: entropy (conditional, down) | same | same |
    | 6 | weight: diversity (marginal, up) | same | same |
    | 7 | weight: self-training (confident pseudo-labels) | same | same |
    | 8 | weight: auxiliary (rotation) | same | same |
    | 9 | transfer coefficient | keep, pull half-way back to the pretrained weights | |
    | 10 | augmentation of labelled images | weaker, keep, stronger | 0 .. 1 |
    | 11 | stop | go on, stop here | |

    ## Observation Space
    A float32 `Box`; every entry is scale-free, clipped, and 0 where its data are absent. The same vector serves any
    network, class count and image size. Nothing in it depends on the labels of `target_eval` or `target_test`.

    {observation_table}

    ## Reward
    Points (hundredths) of accuracy on `target_eval` gained by the decision, minus those that the tuned default gained
    in the same window of its own run on the same task and seed. The return is *points above the tuned default*.
    A diverged run costs 5 points more.

    ## Starting State
    The pretrained network with target normalisation statistics estimated on the target images (AdaBN), and the
    knobs at the tuned default.

    ## Episode End
    Terminated when the budget is used (the progress is observed, so this is no time limit), on stop, and when
    the run diverges: the weights are then back at the last finite ones. Never truncated.

    ## Information
    `task`, `steps`, `diverged`, and the privileged `eval_accuracy` and `default_accuracy`: for logs and critics, not
    for actors.

    ## Arguments
    ```python
    import gymnasium
    import lepton_rl.envs

    env = gymnasium.make("lepton_rl/FineTune-v0", suite="digits", split="train", tasks=1000, regime=None,
                         architecture=None, settings=None, action_cost=0.0, device="cpu")
    ```
    `suite` is `"digits"`, `"data"` (the folder `LEPTON_DATA`), a `SuiteSource` or a `TaskSuite`; `split` one of
    `lepton_rl.suite.SPLITS`; `tasks` how many tasks of it are drawn from; `regime` `"few-label"`, `"label-free"` or
    None for both; `architecture` a name of `lepton_rl.models.ARCHITECTURES` or None for each task's own; `settings` the
    `ControlSettings` at the start, None for the tuned default; `action_cost` points per moved knob.

    ## Vectorised use
    `gymnasium.make_vec("lepton_rl/FineTune-v0", num_envs=N, vectorization_mode="vector_entry_point")`: see
    `FineTuneVectorEnv`.

    ## Version History
    * v0: first version.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        *,
        suite: Suite | SuiteSource | str = "digits",
        split: str = "train",
        tasks: int = 1000,
        regime: Regime | None = None,
        architecture: str | None = None,
        settings: ControlSettings | None = None,
        action_cost: float = 0.0,
        device: str = "cpu",
        render_mode: None = None,
    ) -> None:
        self.render_mode = render_mode
        self.observation_space = observation_space()
        self.action_space = action_space()
        config = SessionConfig(
            suite=suite,
            split=split,
            tasks=tasks,
            regime=regime,
            settings=settings,
            action_cost=action_cost,
            device=device,
        )
        self._session = Session(config, lanes=1, fleet=False, architecture=architecture)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a run on a task drawn from the environment's own generator."""
        super().reset(seed=seed)
        observations, infos = self._session.start({0: self.np_random})
        return observations[0], infos[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply one action and take the gradient steps up to the next decision."""
        observations, rewards, ended, infos = self._session.step(np.asarray(action)[None])
        return observations[0], float(rewards[0]), bool(ended[0]), False, infos[0]


def _observation_table() -> str:
    lines = ["| Num | Signal | Min | Max | Meaning |", "|---|---|---|---|---|"]
    lines += [f"| {i} | {s.name} | {s.low} | {s.high} | {s.formula} |" for i, s in enumerate(SIGNALS)]
    return "\n    ".join(lines)


# The table is made from the code that computes it, so that it cannot go out of date.
FineTuneEnv.__doc__ = (FineTuneEnv.__doc__ or "").replace("{observation_table}", _observation_table())
