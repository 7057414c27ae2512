"""Say in plain words what an action of the policy does to the knobs."""

from collections.abc import Mapping

_STEPS = {0: "/6", 1: "/2.5", 2: "", 3: "x2.5", 4: "x6"}
_PLAIN = {
    "unfreeze": {0: "froze one stage", 1: "", 2: "unfroze one stage"},
    "transfer": {0: "", 1: "pulled half-way back to the start"},
    "augmentation": {0: "weaker augmentation", 1: "", 2: "stronger augmentation"},
    "stop": {0: "", 1: "stopped"},
}
_PLAIN["unfrozen_stages"] = _PLAIN["unfreeze"]


def describe(action: Mapping[str, float] | None) -> str:
    """Write an action as one phrase, such as "unfroze one stage, learning rate x2.5".

    Args:
        action: knob -> number of the sub-action, as in the history; None or empty for the start.
    """
    if not action:
        return "start"
    phrases = [phrase for phrase in (_phrase(knob, int(value)) for knob, value in action.items()) if phrase]
    return ", ".join(phrases) or "kept everything"


def readable(knob: str) -> str:
    """Turn the name of a knob or a signal into words."""
    return knob.replace("_", " ")


def _phrase(knob: str, value: int) -> str:
    if knob in _PLAIN:
        return _PLAIN[knob].get(value, f"{readable(knob)}: {value}")
    step = _STEPS.get(value, f": {value}")
    return f"{readable(knob)} {step}" if step else ""
