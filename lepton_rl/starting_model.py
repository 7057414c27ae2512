"""The network that an adaptation starts from: with weights of its own, or trained on the source here."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lepton_rl.domain import Domain
from lepton_rl.loading import load_model, untrained_model
from lepton_rl.model_check import input_channels
from lepton_rl.models import ARCHITECTURES
from lepton_rl.named_models import ExpectedInput, find_named, is_named
from lepton_rl.pretrain import pretrained, trained_here
from lepton_rl.task_adapter import with_classes

Standardisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class StartingModel:
    """A network as a person names it.

    Attributes:
        name: As in `loading.load_model`.
        weights: File of trained weights, or None.
    """

    name: str
    weights: Path | None = None

    @property
    def comes_trained(self) -> bool:
        """Whether there are weights; otherwise it can be trained on source images."""
        if self.weights is not None:
            return True
        return find_named(self.name).trained if is_named(self.name) else self.name not in ARCHITECTURES

    @property
    def expected(self) -> ExpectedInput | None:
        """What a library states about the images of its model."""
        return find_named(self.name).expected if is_named(self.name) else None

    @property
    def standardisation(self) -> Standardisation | None:
        """Mean and standard deviation that a library states for the weights; None: take those of the source."""
        expected = self.expected
        return None if expected is None or not self.comes_trained else (expected.mean, expected.std)

    def channels(self, default: int) -> int:
        """Return the channels of its images; `default` for a built-in network without weights, which takes any."""
        if self.name in ARCHITECTURES and self.weights is None:
            return default
        return input_channels(self.load() if self.comes_trained else untrained_model(self.name), default)

    def load(self) -> nn.Module:
        """Return the network with its weights, in evaluation mode.

        Raises:
            InputError: As `load_model`.
        """
        return load_model(self.name, self.weights)

    def trained_on(self, source: Domain, head: str | None = None) -> nn.Module:
        """Return the network trained on labelled images, which happens once and is kept.

        Args:
            source: In the size and number of channels that the images will have.
            head: Name of its classifier, which gets an output for every class; default the last linear layer.
        """
        if not is_named(self.name):
            return pretrained(self.name, source)
        model = untrained_model(self.name)
        source = source.with_channels(input_channels(model, source.images.shape[1]))
        return trained_here(with_classes(model, head, source.n_classes), self.name, source)
