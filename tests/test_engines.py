"""What freezing, normalisation per domain, the prefix cache and loss terms do inside one engine."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_stages import ResNet
from tiny import EVERYTHING, PLAIN, WEIGHTS, lane_weights, largest_gap, same, task
from torch import nn

from lepton_rl.choice import choose_engine
from lepton_rl.controls import Controls, ControlSettings
from lepton_rl.errors import InputError
from lepton_rl.fleet import FleetEngine
from lepton_rl.normalisation import Part
from lepton_rl.objective import TERMS
from lepton_rl.solo import SoloEngine
from lepton_rl.stages import HEAD

CPU = torch.device("cpu")


def controls(*settings, device=CPU):
    return Controls.start(list(settings), device)


def solo(visible, seed=1, **options):
    engine = SoloEngine(visible, **options)
    engine.load(0, visible, seed)
    return engine


# ----- frozen means frozen


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING])
def test_frozen_stages_of_a_solo_engine_get_no_gradient_no_state_and_no_change(depth, settings):
    engine = solo(task(architecture="resnet"))
    engine.train(controls(replace(settings, unfrozen_stages=4)), [3])
    before = lane_weights(engine)
    engine.train(controls(replace(settings, unfrozen_stages=depth)), [4])
    after = lane_weights(engine)
    for name, parameter in engine.model.named_parameters():
        frozen = engine.plan.group_of(name) < 4 - depth
        assert parameter.requires_grad is not frozen
        assert (parameter in engine.optimizer.state) is not frozen
        if frozen:
            assert parameter.grad is None
            assert torch.equal(before[name], after[name])
        else:
            assert not torch.equal(before[name], after[name])


def test_the_backward_pass_stops_above_the_frozen_stages():
    engine = solo(task(), cache_bytes=0)
    reached = []

    def note(number):
        return lambda _, __, out: reached.append(number) if out.requires_grad else None

    for i, stage in enumerate(engine.model.stages):
        stage.register_forward_hook(note(i))
    engine.train(controls(replace(EVERYTHING, unfrozen_stages=2)), [2])
    assert set(reached) == {2, 3}


def test_what_stays_unfrozen_keeps_its_moments_and_what_returns_starts_anew():
    engine = solo(task())
    for depth, steps in ((4, 3), (2, 2), (4, 1)):
        engine.train(controls(replace(PLAIN, unfrozen_stages=depth)), [steps])
    counts = {name: int(engine.optimizer.state[p]["step"]) for name, p in engine.model.named_parameters()}
    assert counts["head.weight"] == counts["stages.3.0.weight"] == 6
    assert counts["stages.0.0.weight"] == counts["stages.1.0.weight"] == 1


def test_frozen_lanes_of_a_fleet_do_not_move_while_their_neighbour_trains():
    tasks = [task(0), task(1)]
    engine = FleetEngine(tasks[0], 2)
    for lane, visible in enumerate(tasks):
        engine.load(lane, visible, lane)
    before = [lane_weights(engine, lane) for lane in range(2)]
    engine.train(controls(replace(PLAIN, unfrozen_stages=1), PLAIN), [4, 4])
    after = [lane_weights(engine, lane) for lane in range(2)]
    assert torch.equal(before[0]["stages.0.0.weight"], after[0]["stages.0.0.weight"])
    assert torch.equal(before[0]["target.0.mean"], after[0]["target.0.mean"])
    assert not torch.equal(before[0]["stages.3.0.weight"], after[0]["stages.3.0.weight"])
    assert not torch.equal(before[1]["stages.0.0.weight"], after[1]["stages.0.0.weight"])
    assert float(engine.gradient_norms()[0, 0]) == 0.0


# ----- each domain normalises apart


def statistics(engine, side, lane=0):
    return {name: value for name, value in lane_weights(engine, lane).items() if name.startswith(f"{side}.")}


@pytest.mark.parametrize("fleet", [False, True])
def test_source_batches_never_touch_target_statistics_and_the_other_way_round(fleet):
    visible = task()
    engine = FleetEngine(visible, 1) if fleet else SoloEngine(visible)
    engine.load(0, visible, 1)
    live = torch.tensor([4])
    engine.set_depth(live)
    everyone = torch.tensor([True])
    rows = torch.arange(20)[None]
    for side, other in (("source", "target"), ("target", "source")):
        before = {s: statistics(engine, s) for s in (side, other)}
        engine.forward_rows(rows, (Part(side=side, size=20, update=everyone),), True)
        assert not same(before[side], statistics(engine, side))
        assert same(before[other], statistics(engine, other))
        before = statistics(engine, side)
        engine.forward_rows(rows, (Part(side=side, size=20),), True)
        engine.forward_rows(rows, (Part(side=side, size=20),), False)
        assert same(before, statistics(engine, side))


def test_a_source_free_run_leaves_source_statistics_alone_and_a_run_with_source_moves_both():
    for source in (False, True):
        engine = solo(task(source=source))
        before = {side: statistics(engine, side) for side in ("source", "target")}
        engine.train(controls(PLAIN), [3])
        assert same(before["source"], statistics(engine, "source")) is not source
        assert not same(before["target"], statistics(engine, "target"))


def test_target_statistics_are_the_targets_from_the_start():
    visible = task(images=128)
    engine = solo(visible)
    pixels = (torch.from_numpy(visible.target_unlabelled.images).float() / 255 - 0.3) / 0.2
    with torch.no_grad():
        first = engine.model.stages[0][0](pixels)
    stored = statistics(engine, "target")["target.0.mean"]
    assert torch.allclose(stored, first.mean(dim=(0, 2, 3)), atol=1e-5)


# ----- the prefix cache


def flat_network():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.mark.parametrize("make", [lambda: None, flat_network, ResNet])
@pytest.mark.parametrize("settings", [replace(PLAIN, weights=WEIGHTS), EVERYTHING])
def test_cached_and_uncached_runs_agree_through_every_change_of_the_prefix(make, settings):
    model = make()
    visible = task(architecture="resnet", model=model, budget=60)
    engines = [solo(visible, dtype=torch.float64, cache_bytes=limit) for limit in (2**24, 0)]
    saved = engines[0].snapshot(0)
    for depth, event in enumerate((0, 0, 1, 3, 2, 0, 4, 0)):
        step = replace(settings, unfrozen_stages=event)
        stats = [engine.train(controls(step), [5]) for engine in engines]
        assert torch.allclose(stats[0].terms, stats[1].terms, atol=1e-9)
        assert largest_gap(*(lane_weights(engine) for engine in engines)) < 1e-9
        views = [engine.views() for engine in engines]
        assert torch.allclose(views[0].target.logits, views[1].target.logits, atol=1e-9)
        assert torch.allclose(views[0].source.features, views[1].source.features, atol=1e-9)
        if depth == 1:
            for engine in engines:
                engine.pull_back(torch.tensor([True]), 0.5)
        if depth == 5:
            for engine in engines:
                engine.restore(0, saved)
        views = [engine.views("source") for engine in engines]
        assert torch.allclose(views[0].target.logits, views[1].target.logits, atol=1e-9)


class Counting(nn.Module):
    """Counts the images that its inner module sees."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, x):
        self.seen += len(x)
        return self.inner(x)


def test_frozen_stages_run_once_per_image():
    visible = task(budget=100)
    engine = solo(visible)
    frozen = replace(PLAIN, unfrozen_stages=0)
    engine.train(controls(frozen), [1])
    engine.views()
    counter = Counting(engine.model.stages[0])
    engine.model.stages[0] = counter
    engine.train(controls(frozen), [30])
    first = counter.seen
    # At most every target and source image once, not 30 batches of 80 images.
    assert first <= 40 + 9 + 50
    engine.train(controls(frozen), [30])
    engine.views()
    assert counter.seen <= 40 + 9 + 50
    engine.train(controls(replace(frozen, augmentation=0.5)), [2])
    assert counter.seen >= first + 2 * 80


@pytest.mark.parametrize("limit", [1, 2000])
def test_a_cache_that_is_too_small_is_not_used_and_never_grows_past_its_limit(limit):
    engine = solo(task(), cache_bytes=limit, dtype=torch.float64)
    plain = solo(task(), cache_bytes=0, dtype=torch.float64)
    for each in (engine, plain):
        each.train(controls(replace(PLAIN, unfrozen_stages=0)), [5])
    store = engine.cache._store
    assert store is None or store.numel() * store.element_size() <= limit
    assert largest_gap(lane_weights(engine), lane_weights(plain)) < 1e-12


class ScaledOutput(nn.Module):
    """A network whose output is not its head's output."""

    def __init__(self):
        super().__init__()
        self.net = flat_network()

    def forward(self, x):
        return 2 * self.net(x)


def test_a_network_whose_head_is_not_its_output_is_cut_below_the_head_only():
    engine = solo(task(model=ScaledOutput().eval()))
    engine.train(controls(replace(PLAIN, unfrozen_stages=0)), [2])
    assert engine.cache.cut == max(engine.split.cuts) < HEAD
    assert solo(task(model=flat_network())).split.cut_for([False] * 4 + [True]) == HEAD


# ----- terms, options, equal treatment


@pytest.mark.parametrize("fleet", [False, True])
def test_terms_that_train_nothing_are_still_reported(fleet):
    visible = task()
    engine = FleetEngine(visible, 1) if fleet else SoloEngine(visible)
    engine.load(0, visible, 1)
    stats = engine.train(controls(PLAIN), [5])
    by_name = dict(zip(TERMS, stats.terms[0].tolist(), strict=True))
    for term in ("source", "alignment", "entropy", "diversity", "target"):
        assert by_name[term] > 0, term
    assert by_name["adversarial"] == by_name["auxiliary"] == 0.0


def test_the_reported_loss_is_the_mean_over_the_window_and_the_slope_its_change():
    one, many = (solo(task(), dtype=torch.float64) for _ in range(2))
    rows = [one.train(controls(PLAIN), [1]).terms for _ in range(5)]
    stats = many.train(controls(PLAIN), [5])
    index = TERMS.index("target")
    expected = torch.stack(rows)[:, 0, index]
    assert torch.allclose(stats.terms[0, index], expected.mean())
    assert torch.allclose(stats.slopes[0, index], expected[3:].mean() - expected[:3].mean())


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_layout_changes_nothing_but_rounding(channels_last):
    engines = [solo(task(channels=3), dtype=torch.float64, channels_last=layout) for layout in (False, channels_last)]
    for engine in engines:
        engine.train(controls(EVERYTHING), [4])
    assert largest_gap(*(lane_weights(engine) for engine in engines)) < 1e-8


@pytest.mark.parametrize(
    ("architecture", "width", "taken"), [("resnet", 4, False), ("resnet", 8, True), ("vgg", 4, True)]
)
def test_a_layout_in_which_a_layer_may_corrupt_memory_is_not_taken(architecture, width, taken):
    assert SoloEngine(task(architecture=architecture, width=width, side=16)).channels_last == taken


@pytest.mark.parametrize("fleet", [False, True])
def test_diversity_asks_for_the_classes_that_are_known_to_occur(fleet):
    """Three classes in shares 1/6, 2/6, 3/6; a class prior of equal shares is no other than none, to the bit."""
    weights = dict.fromkeys(WEIGHTS, 0.0) | {"diversity": 10.0}
    settings = ControlSettings(learning_rate=1e-2, weights=weights)
    known = task(labels=False, source=False, prior=True)
    even = replace(known, class_prior=np.full(3, 1 / 3))
    shares, ends = {}, {}
    for name, visible in (("known", known), ("even", even), ("none", replace(known, class_prior=None))):
        engine = FleetEngine(visible, 1) if fleet else SoloEngine(visible)
        engine.load(0, visible, 1)
        engine.train(controls(settings), [60])
        shares[name] = engine.views().target.logits.softmax(-1).mean(1)[0]
        ends[name] = lane_weights(engine)
    assert same(ends["even"], ends["none"])
    torch.testing.assert_close(shares["known"], torch.tensor([1.0, 2.0, 3.0]) / 6, rtol=0, atol=0.08)
    torch.testing.assert_close(shares["none"], torch.full((3,), 1 / 3), rtol=0, atol=0.08)


def test_mixed_precision_without_cuda_is_refused():
    with pytest.raises(InputError, match="amp"):
        SoloEngine(task(), amp=True)


def test_an_engine_never_changes_the_tasks_model():
    visible = task()
    before = {name: value.clone() for name, value in visible.model.state_dict().items()}
    solo(visible).train(controls(PLAIN), [3])
    fleet = FleetEngine(visible, 2)
    fleet.load(1, visible, 0)
    fleet.train(controls(PLAIN, PLAIN), [3, 3])
    assert same(before, visible.model.state_dict())


def test_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = solo(task())
    first.train(controls(EVERYTHING), [3])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    torch.manual_seed(1)
    second = solo(task())
    second.train(controls(EVERYTHING), [3])
    assert same(lane_weights(first), lane_weights(second))


def test_the_same_step_is_bit_for_bit_the_same_again():
    settings = ControlSettings(learning_rate=1e-2, weights=WEIGHTS)
    ends = []
    for _ in range(2):
        engine = FleetEngine(task(), 2)
        for lane in range(2):
            engine.load(lane, task(lane), lane)
        engine.train(controls(settings, settings), [4, 2])
        ends.append(lane_weights(engine, 0))
    assert same(*ends)


def test_the_choice_of_an_engine_is_the_faster_of_what_was_measured():
    choice = choose_engine(task(), 3, workers=2, repeats=1)
    assert list(choice.rates) == ["workers", "worker-fleets", "fleet"]
    assert all(rate > 0 for rate in choice.rates.values())
    assert choice.rates[choice.kind] == max(choice.rates.values())
    with pytest.raises(InputError, match="lanes 0"):
        choose_engine(task(), 0)
