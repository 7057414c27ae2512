"""Random streams belong to a lane: uniform, and independent of what runs beside it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lepton_rl import streams

seeds = st.integers(0, 2**62)


def test_draws_are_uniform_and_in_range():
    draws = streams.uniform(torch.arange(50), streams.SOURCE_BATCH, torch.arange(40).expand(50, -1), 100)
    assert draws.shape == (50, 40, 100)
    assert float(draws.min()) >= 0.0
    assert float(draws.max()) < 1.0
    counts = torch.histc(draws, bins=20, min=0, max=1) / draws.numel()
    # 200,000 draws: one standard deviation of a bin's share is 0.0005.
    assert float((counts - 0.05).abs().max()) < 0.0025
    assert abs(float(draws.var()) - 1 / 12) < 0.001


def test_neighbouring_seeds_streams_steps_and_positions_are_uncorrelated():
    def draw(seed, stream, step):
        return streams.uniform(torch.tensor([seed]), stream, torch.tensor([[step]]), 20_000)[0, 0]

    base = draw(5, 0, 7)
    for other in (draw(6, 0, 7), draw(5, 1, 7), draw(5, 0, 8), base.roll(1)):
        assert abs(float(torch.corrcoef(torch.stack([base, other]))[0, 1])) < 0.03  # four standard deviations


@given(st.lists(seeds, min_size=2, max_size=5), st.integers(0, 8), st.integers(0, 10**6))
def test_a_lane_draws_the_same_alone_and_in_company(lane_seeds, stream, step):
    together = streams.uniform(torch.tensor(lane_seeds), stream, torch.full((len(lane_seeds), 1), step), 9)
    for lane, seed in enumerate(lane_seeds):
        alone = streams.uniform(torch.tensor([seed]), stream, torch.tensor([[step]]), 9)
        assert torch.equal(together[lane], alone[0])


@given(seeds, st.integers(0, 1000))
def test_the_first_draws_do_not_depend_on_how_many_are_asked_for(seed, step):
    few, many = (streams.uniform(torch.tensor([seed]), 3, torch.tensor([[step]]), n) for n in (4, 40))
    assert torch.equal(few, many[..., :4])


def test_one_call_for_many_steps_equals_one_call_per_step():
    lane = torch.tensor([11, 12])
    steps = torch.arange(6).expand(2, -1)
    at_once = streams.uniform(lane, 2, steps, 5)
    one_by_one = torch.stack([streams.uniform(lane, 2, steps[:, k : k + 1], 5)[:, 0] for k in range(6)], dim=1)
    assert torch.equal(at_once, one_by_one)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=4), seeds)
def test_integers_stay_below_each_lanes_own_bound(bounds, seed):
    lane_seeds = torch.arange(len(bounds)) + seed
    drawn = streams.integers(lane_seeds, 0, torch.zeros(len(bounds), 1, dtype=torch.int64), 50, torch.tensor(bounds))
    assert bool((drawn >= 0).all())
    assert bool((drawn < torch.tensor(bounds)[:, None, None]).all())


def test_integers_reach_every_value_about_equally_often():
    drawn = streams.integers(torch.tensor([3]), 0, torch.arange(100)[None], 100, torch.tensor([7]))
    counts = drawn.flatten().bincount(minlength=7)
    assert counts.shape == (7,)
    # 10,000 draws in 7 bins: expected 1429, one standard deviation 35.
    assert float((counts - 10_000 / 7).abs().max()) < 5 * 35


def test_known_values_so_that_a_change_of_the_generator_does_not_go_unseen():
    draws = streams.uniform(torch.tensor([0, 1]), streams.INIT, torch.tensor([[0], [3]]), 2)
    assert [[value.hex() for value in row] for row in draws[:, 0].tolist()] == [
        ["0x1.dec879414e5a8p-3", "0x1.d67a843df5aeap-2"],
        ["0x1.e8939872f964cp-3", "0x1.365f70f8ada38p-3"],
    ]
