"""The reward: points of accuracy above the tuned default on the same task and seed."""

from collections.abc import Sequence

DIVERGENCE_PENALTY = 5.0  # points, on top of whatever accuracy was lost


def reward(
    accuracy: float,
    previous: float,
    default: Sequence[float],
    decision: int,
    *,
    ended: bool,
    diverged: bool,
    changed: int,
    action_cost: float,
) -> float:
    """Return the reward of one decision.

    The default run's own gain is subtracted decision by decision (a control variate), what is left of it at the
    end of a run that stops early. The return is therefore exactly 100 times (final accuracy minus the default's
    final accuracy), less penalties: points above the tuned default.

    Args:
        accuracy: On target_eval after the decision, 0..1.
        previous: On target_eval before it.
        default: The default run's accuracies, at its start and after each decision.
        decision: Number of the decision just taken, from 1.
        ended: Whether the run is over.
        diverged: Whether it diverged.
        changed: Number of knobs that the action moved.
        action_cost: Points per moved knob.
    """
    last = len(default) - 1
    reached = last if ended else min(decision, last)
    default_gain = default[reached] - default[min(decision - 1, last)]
    return 100 * (accuracy - previous - default_gain) - action_cost * changed - DIVERGENCE_PENALTY * diverged
