"""The policy file: weights of actor and guard, their statistics and a card, in safetensors.

Reading one never executes anything: sizes are checked before anything is parsed, the header must name exactly
the tensors of the format, and the schema must be the one this version observes and acts with.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lepton_rl.cache import write_atomically
from lepton_rl.controls import ACTION_SIZES, KNOBS, ControlSettings
from lepton_rl.errors import InputError
from lepton_rl.guard import EVIDENCE, Guard
from lepton_rl.perceptron import Layers
from lepton_rl.policy import KeepPolicy, NetworkPolicy, Policy
from lepton_rl.signals import SIGNALS
from lepton_rl.standardise import Standardiser

FORMAT_VERSION = 3  # 2: a guard; the range of the observations. 3: the guard sees the original
MAX_FILE_BYTES = 16 * 2**20
MAX_HEADER_BYTES = 2**20
MAX_LAYERS = 8
SHIPPED = "lepton-v1"
TUNED_DEFAULT = "tuned-default"
_PARTS = ("weight", "bias")
STATISTICS = tuple(field.name for field in fields(Standardiser))


def observation_schema() -> dict[str, Any]:
    """Return names and ranges of the observation with their hash."""
    rows = [[signal.name, signal.low, signal.high] for signal in SIGNALS]
    return {"signals": rows, "hash": _hash(rows)}


def action_schema() -> dict[str, Any]:
    """Return names and sizes of the sub-actions with their hash."""
    rows = [[name, size] for name, size in zip(KNOBS, ACTION_SIZES, strict=True)]
    return {"knobs": rows, "hash": _hash(rows)}


def _hash(rows: list[list[Any]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyArtifact:
    """A policy with what a person wants to know of it.

    Attributes:
        policy: The actor.
        card: Free facts for people (training tasks, scores, command, licence, versions); JSON values only.
    """

    policy: NetworkPolicy
    card: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the file; identical bytes for identical content."""
        guard = self.policy.guard
        tensors = named_inputs(self.policy.inputs, "observation") | _named(self.policy.layers, "layer")
        if guard is not None:
            tensors |= named_inputs(guard.inputs, "guard") | _named(guard.layers, "guard.layer")
        described = {
            "format_version": FORMAT_VERSION,
            "observation": observation_schema(),
            "action": action_schema(),
            "layers": len(self.policy.layers),
            "settings": asdict(self.policy.settings),
            "guard": None if guard is None else {"layers": len(guard.layers), "margin": guard.margin},
            "card": self.card,
        }
        # One metadata key: safetensors writes several in random order.
        metadata = {"lepton": json.dumps(described, sort_keys=True)}
        return save({name: t.detach().to(torch.float32).contiguous() for name, t in tensors.items()}, metadata)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomically(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> "PolicyArtifact":
        """Read a policy file.

        Raises:
            InputError: If it is not a policy file of this format and schema.
        """
        if not path.is_file():
            raise InputError(f"policy file {str(path)!r} does not exist: expected a .safetensors file; check the path")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(
                f"policy file {str(path)!r} has {path.stat().st_size} bytes: expected at most {MAX_FILE_BYTES}; "
                "it is not a policy"
            )
        return cls.from_bytes(path.read_bytes(), str(path))

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "policy") -> "PolicyArtifact":
        """Read a policy from the bytes of its file; `name` is for error messages."""
        described = _description(content, name)
        _check_schema(described, name)
        tensors = _tensors(content, described, name)
        layers = _layers(tensors, "layer", described["layers"])
        _check_shapes(tensors, "observation", layers, (len(SIGNALS), sum(ACTION_SIZES)), name)
        settings = described["settings"]
        if not isinstance(settings, dict):
            raise InputError(f"{name!r} has no control settings: expected a JSON object; the file is damaged")
        policy = NetworkPolicy(
            inputs=inputs_of(tensors, "observation"),
            layers=layers,
            settings=ControlSettings.from_json(json.dumps(settings)),
            guard=_guard(tensors, described["guard"], name),
        )
        card = described["card"]
        return cls(policy=policy, card=card if isinstance(card, dict) else {})


def named_inputs(inputs: Standardiser, prefix: str) -> dict[str, Tensor]:
    """Return a standardiser as named tensors; `inputs_of` reads them."""
    return {f"{prefix}.{part}": value for part, value in vars(inputs).items()}


def inputs_of(tensors: Mapping[str, Tensor], prefix: str) -> Standardiser:
    """Return the standardiser that `named_inputs` wrote."""
    return Standardiser(**{part: tensors[f"{prefix}.{part}"] for part in STATISTICS})


def _named(layers: Layers, prefix: str) -> dict[str, Tensor]:
    pairs = {f"{prefix}.{i}": layer for i, layer in enumerate(layers)}
    return {f"{name}.{part}": x for name, layer in pairs.items() for part, x in zip(_PARTS, layer, strict=True)}


def _layers(tensors: dict[str, Tensor], prefix: str, count: int) -> Layers:
    return tuple((tensors[f"{prefix}.{i}.weight"], tensors[f"{prefix}.{i}.bias"]) for i in range(count))


def _guard(tensors: dict[str, Tensor], described: dict[str, Any] | None, name: str) -> Guard | None:
    if described is None:
        return None
    layers = _layers(tensors, "guard.layer", described["layers"])
    _check_shapes(tensors, "guard", layers, (EVIDENCE, 1), name)
    margin = float(described["margin"])
    return Guard(inputs=inputs_of(tensors, "guard"), layers=layers, margin=margin)


def _description(content: bytes, name: str) -> dict[str, Any]:
    """Read the header's one metadata key, limits first."""
    length = int.from_bytes(content[:8], "little") if len(content) >= 8 else 0
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise InputError(f"{name!r} is not a policy file: expected a safetensors header of at most 1 MiB; get it again")
    try:
        header = json.loads(content[8 : 8 + length])
        described = json.loads(header["__metadata__"]["lepton"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{name!r} is not a policy file: expected the metadata key 'lepton' in its header; "
            "pass a file written by lepton train"
        ) from None
    if set(header["__metadata__"]) != {"lepton"}:
        raise InputError(f"{name!r} has metadata other than 'lepton': expected that key alone; do not use this file")
    if not isinstance(described, dict):
        raise InputError(f"{name!r} has a damaged description: expected a JSON object; get the file again")
    return described


def _check_schema(described: dict[str, Any], name: str) -> None:
    expected = {"format_version", "observation", "action", "layers", "settings", "guard", "card"}
    version = described.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{name!r} has format version {str(version)[:20]}: expected {FORMAT_VERSION}; train it again or install "
            "the lepton_rl version that wrote it"
        )
    if set(described) != expected:
        raise InputError(f"{name!r} has the keys {sorted(described)[:10]}: expected {sorted(expected)}; get it again")
    for key, schema in (("observation", observation_schema()), ("action", action_schema())):
        if described[key] != schema:
            raise InputError(
                f"{name!r} was trained with another {key} schema: expected hash {schema['hash'][:12]}; "
                "train it again or install the lepton_rl version that wrote it"
            )
    _check_layers(described["layers"], name)
    guard = described["guard"]
    if guard is not None:
        margin = guard.get("margin") if isinstance(guard, dict) and set(guard) == {"layers", "margin"} else None
        if not isinstance(margin, int | float) or not -100 <= margin <= 100:
            raise InputError(f"{name!r} has a damaged guard: expected layers and a margin in points; get it again")
        _check_layers(guard["layers"], f"{name}, guard")


def _check_layers(layers: object, name: str) -> None:
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        raise InputError(f"{name!r} has {str(layers)[:20]} layers: expected 1 to {MAX_LAYERS}; get the file again")


def _tensors(content: bytes, described: dict[str, Any], name: str) -> dict[str, Tensor]:
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, RuntimeError, KeyError, OverflowError) as error:
        reason = str(error).splitlines()[0][:100]
        raise InputError(f"{name!r} cannot be read ({reason}): expected a whole policy file; get it again") from None
    expected = {f"observation.{part}" for part in STATISTICS}
    expected |= {f"layer.{i}.{part}" for i in range(described["layers"]) for part in _PARTS}
    if described["guard"] is not None:
        expected |= {f"guard.{part}" for part in STATISTICS}
        expected |= {f"guard.layer.{i}.{part}" for i in range(described["guard"]["layers"]) for part in _PARTS}
    if set(tensors) != expected:
        raise InputError(f"{name!r} holds the tensors {sorted(tensors)[:9]}: expected {sorted(expected)}; get it again")
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name!r}: tensor {key!r} is not finite float32: expected finite numbers; do not use it")
    return tensors


def _check_shapes(tensors: dict[str, Tensor], inputs: str, layers: Layers, ends: tuple[int, int], name: str) -> None:
    """Check statistics of the inputs and layers from them to the outputs, `ends` of them."""
    sizes = [ends[0]]
    scale = inputs_of(tensors, inputs)
    good = all(value.shape == (ends[0],) for value in vars(scale).values())
    good = good and bool((scale.std > 0).all()) and bool((scale.low <= scale.high).all())
    for weight, bias in layers:
        good = good and weight.dim() == 2 and weight.shape[1] == sizes[-1] and bias.shape == weight.shape[:1]
        if not good:
            break
        sizes.append(weight.shape[0])
    if not good or sizes[-1] != ends[1]:
        raise InputError(
            f"{name!r} has tensors of wrong shapes: expected a network from {ends[0]} numbers of {inputs} to "
            f"{ends[1]}; get the file again"
        )


def shipped_policy_path() -> Path:
    """Return where the shipped policy lies in the installed package."""
    return Path(str(resources.files("lepton_rl.policies").joinpath(f"{SHIPPED}.safetensors")))


def load_policy(policy: str | Path | Policy) -> Policy:
    """Return a policy by name or path; a `Policy` is returned as it is.

    Args:
        policy: `lepton-v1` (shipped), `tuned-default`, the path of a policy file, or a policy.

    Raises:
        InputError: If there is no such policy.
    """
    if not isinstance(policy, str | Path):
        return policy
    if policy == TUNED_DEFAULT:
        return KeepPolicy()
    if policy == SHIPPED:
        return PolicyArtifact.load(shipped_policy_path()).policy
    path = Path(policy)
    if path.suffix != ".safetensors":
        raise InputError(
            f"policy {str(policy)!r} is unknown: expected {SHIPPED!r}, {TUNED_DEFAULT!r} or the path of a "
            ".safetensors policy file (SB3 zip files run code when loaded and are not read)"
        )
    return PolicyArtifact.load(path).policy
