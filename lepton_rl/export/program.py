"""The network as a graph: standardisation in front, and nothing in it that its output does not need."""

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from lepton_rl.errors import InputError
from lepton_rl.outputs import as_logits
from lepton_rl.preprocessing import Preprocessing

INPUT, OUTPUT, BATCH = "images", "logits", "n"
_STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Deployable(nn.Module):
    """A network that takes images as they are, uint8 `[n, c, h, w]`, and puts out float32 logits `[n, k]`.

    Args:
        model: From standardised images to logits; it is copied, in float32 and evaluation mode.
        preprocessing: Its mean and standard deviation become part of the network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to("cpu", torch.float32).eval()
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Standardise and classify."""
        return as_logits(self.model((images.to(torch.float32) / 255 - self.mean) / self.std))


@dataclass(frozen=True, kw_only=True, eq=False)
class Traced:
    """A network as a graph.

    Attributes:
        program: With any number of images; it holds only what its output needs.
        kept: Numbers in its parameters and buffers.
        pruned: Name -> numbers of what was left out: an old head, heads of the training, batch counters.
    """

    program: ExportedProgram
    kept: int
    pruned: dict[str, int]


def trace(network: Deployable, preprocessing: Preprocessing) -> Traced:
    """Trace a network for any number of images of its size.

    Raises:
        InputError: If it decides something in Python that depends on the images.
    """
    shape = (2, preprocessing.channels, preprocessing.height, preprocessing.width)
    example = torch.arange(2 * shape[1] * shape[2] * shape[3]).remainder(256).to(torch.uint8).reshape(shape)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer about itself
            shapes = {INPUT: {0: torch.export.Dim(BATCH, min=1)}}
            program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    except Exception as error:  # the tracer raises many kinds; each means that the network cannot be a graph
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"model {type(network.model).__name__} cannot be exported ({reason}): expected a network whose steps do "
            "not depend on the values or the number of the images; rewrite that part with torch functions"
        ) from error
    pruned = _prune(program)
    return Traced(program=program, kept=sum(t.numel() for t in _tensors(program).values()), pruned=pruned)


def _prune(program: ExportedProgram) -> dict[str, int]:
    """Take every stored tensor without an effect on the output out of a program; return their names and sizes."""
    graph = program.graph_module.graph
    graph.eliminate_dead_code()
    unused = {node.name: node for node in graph.nodes if node.op == "placeholder" and not node.users}
    sizes = {name: tensor.numel() for name, tensor in _tensors(program).items()}
    specs = program.graph_signature.input_specs
    dead = [spec for spec in specs if spec.kind in _STORED and spec.arg.name in unused]
    for spec in dead:
        graph.erase_node(unused[spec.arg.name])
        specs.remove(spec)
    # A tensor that two names share stays while either is used.
    targets = {str(spec.target) for spec in dead} - {str(spec.target) for spec in specs}
    for target in targets:
        program.state_dict.pop(target, None)
        program.constants.pop(target, None)
    program.graph_module.recompile()
    return {name: sizes.get(name, 0) for name in sorted(targets)}


def _tensors(program: ExportedProgram) -> dict[str, Tensor]:
    constants = {name: t for name, t in program.constants.items() if isinstance(t, Tensor)}
    return {**constants, **program.state_dict}
