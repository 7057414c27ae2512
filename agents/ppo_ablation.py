"""What PPO rests on: the same training on recorded runs with one thing changed, judged on tasks it did not see.

Seed k learns from all tasks but the k-th part of them and is judged on that part, so that with three seeds every task
is judged once. No run is made; what other runs than the recorded ones would teach is not in here.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from lepton_rl.agents.ablation import privileged
from lepton_rl.agents.crew import Crew
from lepton_rl.agents.distill import CLIP, distil
from lepton_rl.agents.experience import Experience, read_experience, read_glances
from lepton_rl.agents.ppo import ResumablePPO, actor, favour_keep, start_from
from lepton_rl.agents.recorded import RecordedEnv, recorded_points
from lepton_rl.agents.training_env import NormalisedVecEnv
from lepton_rl.controls import tuned_default
from lepton_rl.policy import NetworkPolicy
from lepton_rl.signals import SIGNALS
from lepton_rl.standardise import Standardiser

LANES, STEPS, KEEP_PROBABILITY, HIDDEN = 16, 128, 0.97, [64, 64]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A training with one thing changed.

    Attributes:
        name: For people.
        cloned: Whether PPO starts from the distilled actor; else from keeping every knob.
        residual: Whether an actor that starts from nothing favours keeping; else all sub-actions are as likely.
        rollouts: Of 2,048 decisions.
        ppo: Arguments of SB3's PPO.
        env: Arguments of `RecordedEnv`.
        hidden_groups: Groups of signals that the actor and the critic do not see.
        apart: Whether each label regime has a policy of its own.
        told: Whether the critic is told what the generator knows of a task.
        stacked: Whether the observation before is seen as well; not together with `told`.
    """

    name: str
    cloned: bool = True
    residual: bool = True
    rollouts: int = 60
    ppo: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    hidden_groups: tuple[str, ...] = ()
    apart: bool = False
    told: bool = False
    stacked: bool = False


VARIANTS = (
    Variant(name="as it is: cloned start, 60 rollouts"),
    Variant(name="the cloned start alone, no PPO", rollouts=0),
    Variant(name="30 rollouts", rollouts=30),
    Variant(name="PPO from keeping everything", cloned=False),
    Variant(name="PPO from sub-actions drawn at random: no residual start", cloned=False, residual=False),
    Variant(name="no control variate", env={"control_variate": False}),
    Variant(name="no control variate, from keeping everything", cloned=False, env={"control_variate": False}),
    Variant(name="privileged critic", told=True),
    Variant(name="privileged critic, from keeping everything", cloned=False, told=True),
    Variant(name="history: the observation before as well", stacked=True),
    Variant(name="without scores and gap", hidden_groups=("scores",)),
    Variant(name="without facts of the task, labels and source", hidden_groups=("facts", "availability")),
    Variant(name="a policy for each label regime", apart=True),
    Variant(name="unrecorded actions cost nothing", env={"off_record": 0.0}),
    Variant(name="learning rate 1e-4", ppo={"learning_rate": 1e-4}),
    Variant(name="learning rate 1e-3", ppo={"learning_rate": 1e-3}),
    Variant(name="clip range 0.1", ppo={"clip_range": 0.1}),
    Variant(name="entropy bonus 0.01", ppo={"ent_coef": 0.01}),
    Variant(name="gamma 0.9", ppo={"gamma": 0.9}),
)


def ppo_ablation(folder: Path, seeds: int = 3, workers: int = 1, variants: Sequence[Variant] = VARIANTS) -> str:
    """Return the points above the tuned default of every variant, as a Markdown table.

    Args:
        folder: Of `scripts/collect_experience.py`.
        seeds: Trainings of every variant, each judged on its own part of the tasks.
        workers: Processes.
        variants: What to compare; the first is what the others are compared with.

    Raises:
        RuntimeError: If a training failed.
    """
    jobs = [(number, seed) for number in range(len(variants)) for seed in range(seeds)]
    found: dict[tuple[int, int], tuple[np.ndarray, float]] = {}
    with Crew(workers, functools.partial(_trainer, folder, seeds, variants)) as crew:
        for done in crew.run(jobs):
            if done.problem is not None:
                raise RuntimeError(f"{variants[done.job[0]].name}, seed {done.job[1]} failed: {done.problem}")
            found[done.job] = done.value
    lines = [
        f"| PPO on recorded runs | points, {seeds} seeds | lowest to highest seed | against the first | off record |",
        "|---|---|---|---|---|",
    ]
    reference = np.concatenate([found[0, seed][0] for seed in range(seeds)])
    for number, variant in enumerate(variants):
        parts = [found[number, seed] for seed in range(seeds)]
        points = np.concatenate([part for part, _ in parts])
        difference, means = points - reference, [float(part.mean()) for part, _ in parts]
        against = f"{difference.mean():+.2f} ± {difference.std() / len(difference) ** 0.5:.2f}" if number else ""
        apart = float(np.mean([far for _, far in parts]))
        spread = f"{min(means):+.2f} to {max(means):+.2f}"
        lines.append(f"| {variant.name} | {points.mean():+.2f} | {spread} | {against} | {apart:.2f} |")
    return "\n".join(lines)


def _trainer(
    folder: Path, seeds: int, variants: Sequence[Variant]
) -> Callable[[tuple[int, int]], tuple[np.ndarray, float]]:
    experience, glances = read_experience(folder), read_glances(folder)
    order = np.random.default_rng(0).permutation(len(experience))

    @functools.cache
    def start(seed: int) -> tuple[list[Experience], list[Experience], NetworkPolicy]:
        judged = np.sort(np.array_split(order, seeds)[seed])
        learnt = [experience[i] for i in np.setdiff1d(order, judged)]
        clone = distil(learnt, glances, 0.0, tuned_default(), smoothing=1 - KEEP_PROBABILITY, seed=seed)
        return learnt, [experience[i] for i in judged], clone

    def run(job: tuple[int, int]) -> tuple[np.ndarray, float]:
        number, seed = job
        learnt, judged, clone = start(seed)
        return trained_points(variants[number], learnt, judged, clone, seed)

    return run


def trained_points(
    variant: Variant, learnt: Sequence[Experience], judged: Sequence[Experience], clone: NetworkPolicy, seed: int
) -> tuple[np.ndarray, float]:
    """Train on some tasks, and return the points above the tuned default on others, and the sub-actions off record."""
    points, apart = np.zeros(len(judged)), np.zeros(len(judged))
    regimes = ("few-label", "label-free") if variant.apart else ("",)
    for regime in regimes:
        mine = [e for e in learnt if str(e.facts["regime"]).startswith(regime)]
        where = np.array([str(e.facts["regime"]).startswith(regime) for e in judged])
        policy = _trained(variant, mine, clone, seed)
        points[where], apart[where] = recorded_points(
            policy, [e for e, here in zip(judged, where, strict=True) if here], stacked=variant.stacked
        )
    return points.clip(-CLIP, CLIP), float(apart.mean())


def _trained(variant: Variant, learnt: Sequence[Experience], clone: NetworkPolicy, seed: int) -> NetworkPolicy:
    inputs = _blinded(clone.inputs, variant.hidden_groups)
    if variant.stacked:
        inputs, clone = _beside(inputs, inputs), _blind_to_more(clone, len(SIGNALS))
    kinds: dict[str, Any] = {"net_arch": {"pi": HIDDEN, "vf": HIDDEN}}
    lanes: Callable[[], RecordedEnv]
    if variant.told:
        known = privileged(learnt)
        lanes = functools.partial(_TellingEnv, learnt, known, action_cost=0.05, **variant.env)
        told = torch.stack([torch.from_numpy(known(e)[len(SIGNALS) :]).float() for e in learnt])
        seen = _beside(inputs, Standardiser.of(told))
    else:
        lanes = functools.partial(RecordedEnv, learnt, action_cost=0.05, stacked=variant.stacked, **variant.env)
        seen = inputs
    settings = {"learning_rate": 3e-4, "clip_range": 0.2, "ent_coef": 0.0, "gamma": 1.0} | variant.ppo
    model = ResumablePPO(
        _ToldCriticPolicy if variant.told else "MlpPolicy",
        NormalisedVecEnv(DummyVecEnv([lanes] * LANES), seen),
        n_steps=STEPS,
        batch_size=512,
        n_epochs=10,
        gae_lambda=0.95,
        target_kl=0.03,
        policy_kwargs=kinds,
        seed=seed,
        device="cpu",
        **settings,
    )
    model.run_seed = seed
    if variant.residual:
        favour_keep(model, KEEP_PROBABILITY)
    if variant.cloned:
        start_from(model, clone)
    if variant.rollouts:
        model.learn(variant.rollouts * LANES * STEPS)
    return actor(model, inputs, tuned_default())


def _blinded(inputs: Standardiser, groups: Sequence[str]) -> Standardiser:
    """Hold the signals of some groups at their mean."""
    hidden = torch.tensor([signal.group in groups for signal in SIGNALS])
    low, high = (torch.where(hidden, inputs.mean, end) for end in (inputs.low, inputs.high))
    return replace(inputs, low=low, high=high)


def _beside(one: Standardiser, other: Standardiser) -> Standardiser:
    return Standardiser(**{name: torch.cat([value, getattr(other, name)]) for name, value in vars(one).items()})


def _blind_to_more(policy: NetworkPolicy, more: int) -> NetworkPolicy:
    """Let a policy take further inputs, which change nothing yet."""
    (weight, bias), *others = policy.layers
    return replace(policy, layers=((nn.functional.pad(weight, (0, more)), bias), *others))


class _TellingEnv(RecordedEnv):
    """Puts what the generator knows of the task behind every observation."""

    def __init__(
        self,
        experience: Sequence[Experience],
        known: Callable[[Experience], np.ndarray],
        **costs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(experience, **costs)
        self._known = {id(e): known(e)[len(SIGNALS) :].astype(np.float32) for e in experience}
        size = len(SIGNALS) + len(next(iter(self._known.values())))
        self.observation_space = Box(-np.inf, np.inf, (size,))

    def _seen(self) -> np.ndarray:
        return np.concatenate([super()._seen(), self._known[id(self.task)]])


class _ToldCriticPolicy(ActorCriticPolicy):
    """The actor sees the signals, the critic all there is (Pinto et al. 2018, "Asymmetric actor critic")."""

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        extractor = self.mlp_extractor
        own = extractor.policy_net[0]
        assert isinstance(own, nn.Linear)
        extractor.policy_net[0] = nn.Linear(len(SIGNALS), own.out_features)
        everything = extractor.forward_actor

        def signals_alone(features: Tensor) -> Tensor:
            return everything(features[:, : len(SIGNALS)])

        extractor.forward_actor = signals_alone  # type: ignore[method-assign]
