"""Experience and what is distilled from it: plans, full information, choices that did not see their task, clones."""

from dataclasses import asdict, replace

import gymnasium
import numpy as np
import pytest
import torch

from lepton_rl.agents import distill
from lepton_rl.agents.ablation import ablation_table, cloning_table, control_variate, privileged, strangers_table
from lepton_rl.agents.distill import (
    CLIP,
    choose_plans,
    cloned,
    distil,
    distilled,
    plans_for,
    repertoire,
    returns,
)
from lepton_rl.agents.experience import (
    Experience,
    ExperienceConfig,
    collect,
    completed,
    glance,
    play,
    read_glances,
)
from lepton_rl.agents.headroom import headroom, headroom_table, plans_table
from lepton_rl.agents.plans import PLANS, STOPPED, Plan
from lepton_rl.agents.ppo import ResumablePPO, actor, start_from
from lepton_rl.agents.validation import played_accuracy
from lepton_rl.controls import ACTION_SIZES, KEEP, KNOBS, tuned_default
from lepton_rl.envs import spaces
from lepton_rl.errors import InputError
from lepton_rl.policy import KeepPolicy, SchedulePolicy
from lepton_rl.signals import MEASURED_NAMES, SIGNAL_NAMES
from lepton_rl.suite import TaskSuite

LANES = ("observations", "actions", "accuracies", "scores")
HAS_LABELS = SIGNAL_NAMES.index("has_labels")


def made_up(few, rng, decisions=8):
    """Return experience in which plan 1 is worth 4 points with labels, -4 without, and all others are worth nothing."""
    lanes = len(PLANS)
    observations = torch.from_numpy(rng.random((lanes, decisions + 1, len(SIGNAL_NAMES)))).float()
    observations[..., HAS_LABELS] = float(few)
    observations[..., 0] = torch.arange(decisions + 1) / decisions
    accuracies = torch.full((lanes, decisions + 1, 2), 0.5)
    accuracies[1, -1] += 0.04 if few else -0.04
    return Experience(
        observations=observations,
        actions=torch.stack([plan.actions(decisions) for plan in PLANS]),
        accuracies=accuracies,
        scores=torch.zeros(lanes, decisions + 1),
        original=torch.tensor([0.5, 0.5]),
        original_score=torch.tensor(0.0),
        original_signals=torch.zeros(len(MEASURED_NAMES)),
        facts={"name": "made up", "regime": "few-label" if few else "label-free", "source_free": 0,
               "label_skew": 0.0, "label_noise": 0.0, "shifts": "rotate0.3+blur0.5" if few else "",
               "base": "digits", "budget": 40, "architecture": "vgg",
               "settings": asdict(tuned_default())},
    )  # fmt: skip


@pytest.fixture
def experience():
    rng = np.random.default_rng(0)
    return [made_up(few=i % 2 == 0, rng=rng) for i in range(60)]


def test_every_plan_is_a_legal_schedule_and_the_first_keeps_everything():
    assert (PLANS[0].actions(8) == torch.tensor(KEEP)).all()
    assert len({plan.name for plan in PLANS}) == len(PLANS)
    for plan in PLANS:
        actions = plan.actions(4)
        assert actions.shape == (4, len(KNOBS))
        assert (actions < torch.tensor(ACTION_SIZES)).all()
        assert (actions[1:-1] == torch.tensor(KEEP)).all()
    assert [len(plan.actions(8)) for plan in STOPPED] == [1, 5]
    assert [plan.actions(8)[-1, -1] for plan in STOPPED] == [1, 1]
    late = Plan(name="x", first={"entropy": 0}, last={"transfer": 1}).actions(3)
    assert [late[0, 5], late[2, 5], late[0, 9], late[2, 9]] == [0, 2, 0, 1]


def test_all_lanes_play_the_same_task_each_under_its_plan(suite):
    task = suite.task("train", 1)
    experience = play(task)
    lanes, decisions = experience.actions.shape[:2]
    assert lanes == len(PLANS)
    assert torch.equal(experience.observations[:, 0], experience.observations[:1, 0].expand(lanes, -1))
    for lane in (0, 2):
        actions = tuple(tuple(row) for row in PLANS[lane].actions(decisions).tolist())
        alone = played_accuracy(SchedulePolicy(actions=actions), task)
        assert float(experience.accuracies[lane, -1].mean()) == pytest.approx(alone, abs=0.02)
    assert experience.returns[0] == 0
    again = Experience.load_bytes(experience.to_bytes())
    assert torch.equal(again.accuracies, experience.accuracies)
    assert again.facts == experience.facts


def test_a_collection_goes_on_where_it_was(tmp_path, monkeypatch, suite, capsys):
    monkeypatch.setattr(TaskSuite, "digits", lambda: suite)
    config = ExperienceConfig(out=tmp_path, tasks=2, glances=3, workers=1)
    paths = collect(config)
    first = [path.read_bytes() for path in paths]
    assert torch.equal(read_glances(tmp_path)[1], glance(suite.task("train", 3)))
    paths[1].unlink()
    assert [path.read_bytes() for path in collect(config)] == first
    assert capsys.readouterr().err.count("1 of 1: ") == 1
    config.glance_path(2).write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no glances: remove it"):
        read_glances(tmp_path)


def test_plans_that_were_added_are_played_and_put_beside_the_others(tmp_path, monkeypatch, suite, capsys):
    monkeypatch.setattr(TaskSuite, "digits", lambda: suite)
    config = ExperienceConfig(out=tmp_path, tasks=2, glances=0, workers=1)
    whole = [Experience.load(path) for path in collect(config)]
    first = replace(whole[0], **{name: getattr(whole[0], name)[:5] for name in LANES})
    config.path(0).write_bytes(first.to_bytes())
    capsys.readouterr()
    again = [Experience.load(path) for path in collect(config)]
    assert capsys.readouterr().err.count("1 of 1: ") == 1
    for name in LANES:
        assert torch.allclose(getattr(again[0], name).float(), getattr(whole[0], name).float(), atol=0.02), name
        assert torch.equal(getattr(again[0], name)[:5], getattr(whole[0], name)[:5])


@pytest.mark.parametrize("change", ["settings", "actions", "facts"])
def test_an_experience_of_something_else_is_not_continued(suite, change):
    task = suite.task("train", 1)
    known = play(task, plans=PLANS[:2])
    if change == "settings":
        known.facts["settings"]["learning_rate"] = 0.5
    elif change == "facts":
        known.facts["budget"] = 4
    else:
        known.actions[1, 0, 0] = 0
    with pytest.raises(InputError, match="collect it again in another --out"):
        completed(known, task)


def test_a_folder_of_another_start_is_refused_before_anything_is_played(tmp_path, monkeypatch, suite):
    monkeypatch.setattr(TaskSuite, "digits", lambda: suite)
    known = play(suite.task("train", 0), plans=PLANS[:2])
    known.facts["settings"]["learning_rate"] = 0.5
    config = ExperienceConfig(out=tmp_path, tasks=1, glances=0, workers=1)
    config.path(0).write_bytes(known.to_bytes())
    with pytest.raises(InputError, match="was played from other settings"):
        collect(config)


def test_a_glance_is_what_a_player_sees_first(suite):
    task = suite.task("train", 1)
    assert torch.allclose(glance(task), play(task).observations[0, 0], atol=1e-4)


def test_choices_find_what_depends_on_the_task_and_are_paid_fairly(experience):
    choice = choose_plans(experience)
    few = np.array([e.facts["regime"] == "few-label" for e in experience])
    assert (choice.plans == few).all()
    assert choice.gain == pytest.approx(2.0, abs=0.01)  # 4 points on every second task
    assert choice.oracle == pytest.approx(2.0, abs=0.01)
    assert abs(choice.single) < 1.0  # plan 1 for everybody gives nothing on average
    assert "| rate up | +0.00 ± 0.52 | +4.00 ± 0.00 | -4.00 ± 0.00 |" in plans_table(experience)


def test_an_ablation_tells_what_the_choice_rests_on(experience, monkeypatch):
    monkeypatch.setattr(distill, "TREES", 40)
    rows = {line.split(" | ")[0][2:]: line for line in ablation_table(experience, seeds=2).splitlines()}
    assert "| +2.00 | +2.00 to +2.00 |" in rows["labels or none, source data or none"]
    assert "+0.00 ± 0.00 |" in rows["labels or none, source data or none"]
    blind = float(rows["without facts of the task"].split(" | ")[1])
    assert blind < 1.0, "labels are the only thing that tells here"
    assert "+2.00" in rows["privileged facts as well"]
    assert rows["half of the tasks"].endswith("|  |")


def test_cloning_is_judged_on_tasks_that_nobody_saw(experience, monkeypatch):
    monkeypatch.setattr(distill, "TREES", 40)
    monkeypatch.setattr(distill, "EPOCHS", 150)
    fresh = np.random.default_rng(5)
    glances = torch.stack([made_up(few=i % 2 == 0, rng=fresh).observations[0, 0] for i in range(200)])
    rows = {row.split(" | ")[0][2:]: row for row in cloning_table(experience, glances, seeds=1).splitlines()}
    forest, without, with_them = (
        float(rows[name].split(" | ")[1])
        for name in ("the forest", "an actor without glances", "an actor with glances")
    )
    assert forest == pytest.approx(2.0, abs=0.01)
    assert without < with_them <= forest


def test_strangers_are_judged_by_trees_that_saw_nothing_like_them():
    """Plan 1 helps on one set and harms on the other: who has not seen a set is wrong about it."""
    rng = np.random.default_rng(1)
    made = [made_up(few=i % 2 == 0, rng=rng) for i in range(80)]
    for i, e in enumerate(made):
        e.facts.update(base=("digits", "mnist")[i % 2], shifts=("blur0.5", "")[i % 2])
    sets, kinds = (line.split(" | ") for line in strangers_table(made, seeds=2).splitlines()[2:])
    assert float(sets[1].split(" ")[0]) == pytest.approx(-2.0, abs=0.01)  # mnist loses 4, digits keeps the default
    assert sets[2:] == ["0 %", "50 % |"]
    assert kinds[2:] == ["0 %", "0 % |"], "a task without a shift is not judged, and blur was never seen to help"
    assert "| its base sets | nothing else was played | | |" in strangers_table(made[::2], seeds=1)


def test_privileged_facts_are_told_apart(experience):
    look = privileged(experience)
    few, free = look(experience[0]), look(experience[1])
    assert few[-2:].tolist() == [0.5, 0.3]  # blur and rotate
    assert free[-2:].tolist() == [0.0, 0.0]


def test_the_control_variate_is_measured(experience):
    for i, e in enumerate(experience):
        e.accuracies[:] += 0.01 * i  # tasks differ by far more than plans do
        e.accuracies[:, 0] = 0.1
    raw, paid = control_variate(experience)
    assert raw > 3 * paid
    assert paid == pytest.approx(np.std([e.returns[1:].numpy() for e in experience]), rel=1e-4)


def test_headroom_is_paid_on_images_that_did_not_choose():
    e = made_up(few=True, rng=np.random.default_rng(0))
    e.accuracies[:] = 0.5
    e.accuracies[3, -1] = torch.tensor([0.6, 0.5])  # luck: good on one half only
    e.accuracies[5, 4] = torch.tensor([0.58, 0.58])  # real, and over by the end
    default, original, best, moment, lucky = headroom(e)
    assert (default, original) == (0.5, 0.0)
    # Chosen on the first half: plan 3, worth nothing on the second; chosen on the second: a tie, plan 0.
    assert best == pytest.approx(0.0)
    # Chosen on the first half: plan 3 again; on the second: plan 5 at its moment, worth 8 points on the first.
    assert moment == pytest.approx(4.0)
    assert lucky == pytest.approx((10 + 8) / 2)
    assert "| budget 40 | 1 | 0.500 | +0.0 ± 0.0 | +0.0 ± 0.0 | +4.0 ± 0.0 | +9.0 ± 0.0 |" in headroom_table([e])


def test_stopping_is_read_off_the_default_and_cloned_with_its_states(experience):
    e = experience[0]
    e.accuracies[0] = torch.tensor([0.5, 0.6, 0.7, 0.6, 0.65, 0.6, 0.5, 0.4, 0.3])[:, None]
    assert returns(e)[len(PLANS) :] == pytest.approx([20.0, 35.0])
    seen, done = cloned(e, len(PLANS) + 1)
    assert torch.equal(seen, e.observations[0, :5])
    assert done[:, -1].tolist() == [0, 0, 0, 0, 1]


def test_where_nothing_helps_the_default_is_kept():
    rng = np.random.default_rng(1)
    noise = [made_up(few=True, rng=rng) for _ in range(40)]
    for e in noise:
        e.accuracies[1:, -1] = 0.5 - 0.02 * torch.from_numpy(rng.random((len(PLANS) - 1, 1))).float()
    assert (choose_plans(noise).plans == 0).all()


def test_accidents_count_no_more_than_the_limit():
    rng = np.random.default_rng(2)
    wild = [made_up(few=True, rng=rng) for _ in range(10)]
    for e in wild:
        e.accuracies[2, -1] = 1.0  # 50 points
    assert choose_plans(wild).gain == pytest.approx(CLIP)


def test_the_clone_does_what_was_chosen_and_fits_into_ppo(experience):
    fresh = np.random.default_rng(9)
    policy = distil(experience, torch.zeros(0, len(SIGNAL_NAMES)), 0.5, tuned_default(), hidden=(16, 16), seed=1)
    for few, plan in ((True, 1), (False, 0)):
        states = made_up(few, fresh).observations[plan, :-1]
        taken = policy.act(states, torch.arange(8), torch.zeros(8))
        assert (taken == PLANS[plan].actions(8)).float().mean() > 0.95

    class Lanes(gymnasium.Env):
        observation_space, action_space = spaces.observation_space(), spaces.action_space()

    model = ResumablePPO("MlpPolicy", Lanes(), n_steps=8, batch_size=8, device="cpu",
                         policy_kwargs={"net_arch": {"pi": [16, 16], "vf": [16]}})  # fmt: skip
    start_from(model, policy)
    back = actor(model, policy.inputs, policy.settings)
    assert torch.equal(back.logits(states), policy.logits(states))


def test_every_decision_of_a_plan_is_known_once_and_learnt_as_a_whole(experience):
    known = repertoire()
    assert len(known) == len({tuple(row) for row in known.tolist()})
    for choice in (*PLANS, *STOPPED):
        for row in choice.actions(7):
            assert (row == known).all(1).any(), choice.name
    glances = torch.zeros(0, len(SIGNAL_NAMES))
    seen = torch.stack([e.observations[0, 0] for e in experience if e.facts["regime"] == "few-label"])
    taken = (known == PLANS[1].actions(8)[0]).all(1).nonzero().item()
    chances = []
    for whole in (0.0, 1.0):
        policy = distil(experience, glances, 0.5, tuned_default(), hidden=(4,), smoothing=0.5, whole=whole, seed=1)
        parts = policy.logits(seen).split(ACTION_SIZES, dim=1)
        logs = torch.stack([part.log_softmax(1)[:, known[:, k]] for k, part in enumerate(parts)]).sum(0)
        chances.append(logs.softmax(1)[:, taken].mean())
    assert chances[1] > 1.2 * chances[0]


def test_glances_are_told_what_the_played_tasks_taught(experience):
    """A signal that only tells tasks of the experience apart says nothing of the plans: glances teach that."""
    fresh = np.random.default_rng(5)
    more = [made_up(few=i % 2 == 0, rng=fresh) for i in range(400)]
    glances = torch.stack([e.observations[0, 0] for e in more])
    assert (plans_for(glances.numpy(), experience, 0.5) == [1, 0] * 200).all()
    right = []
    for seen in (glances[:0], glances):
        policy = distil(experience, seen, 0.5, tuned_default(), hidden=(16, 16), seed=1)
        states = torch.stack([made_up(few=True, rng=fresh).observations[0, 0] for _ in range(200)])
        taken = policy.act(states, torch.zeros(200), torch.zeros(200))
        right.append(float((taken == PLANS[1].actions(8)[0]).all(1).float().mean()))
    assert right[1] > right[0] + 0.2
    assert right[1] > 0.6  # one signal of 85 tells


def test_the_actor_is_standardised_by_all_observations(experience):
    inputs = distil(experience, torch.zeros(0, len(SIGNAL_NAMES)), 0.0, tuned_default(), hidden=(4,)).inputs
    assert inputs.mean[HAS_LABELS] == pytest.approx(0.5)
    assert inputs.std[HAS_LABELS] == pytest.approx(0.5, abs=0.01)
    assert (inputs.low[HAS_LABELS], inputs.high[HAS_LABELS]) == (0, 1)


def test_experience_of_another_default_is_refused(tmp_path, experience):
    e = experience[0]
    e.facts["settings"]["learning_rate"] = 0.02
    (tmp_path / "a.safetensors").write_bytes(e.to_bytes())
    with pytest.raises(InputError, match="was played from other settings"):
        distilled(tmp_path, hidden=(8,), keep=0.9, seed=0)


def test_experience_of_other_plans_is_refused(tmp_path, experience):
    short = replace(experience[0], actions=experience[0].actions[:3])
    (tmp_path / "a.safetensors").write_bytes(short.to_bytes())
    with pytest.raises(InputError, match=f"was played under 3 plans: expected today's {len(PLANS)}"):
        distilled(tmp_path, hidden=(8,), keep=0.9, seed=0)


def test_keep_is_what_plan_zero_does(suite):
    task = suite.task("train", 2)
    assert KeepPolicy().settings == tuned_default()
    assert play(task).accuracies[0, -1].mean() == pytest.approx(played_accuracy(KeepPolicy(), task), abs=0.02)
