"""Layer groups of any network onto four stages and a head."""

import pytest
import torch
from torch import nn

from lepton_rl.errors import InputError
from lepton_rl.models import ARCHITECTURES, build_model
from lepton_rl.stages import HEAD, find_stages


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_packages_own_networks_have_the_stages_they_name(name):
    plan = find_stages(build_model(name, channels=1, n_classes=3, width=4))
    assert plan.stages == (("stages.0",), ("stages.1",), ("stages.2",), ("stages.3",))
    assert plan.head == "head"


def conv(n_in, n_out):
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU())


def test_a_flat_sequence_is_dealt_in_order():
    layers = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(7)]
    plan = find_stages(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    assert plan.stages == (("0", "1"), ("2", "3"), ("4", "5"), ("6",))
    assert plan.head == "9"


def test_a_network_with_fewer_groups_leaves_stages_empty():
    plan = find_stages(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2)))
    assert plan.stages == (("0",), ("1",), (), ())
    assert plan.head == "3"


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Laid out as torchvision's: conv1, bn1, layer1 .. layer4, fc."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        for i, (n_in, n_out, stride) in enumerate(((4, 4, 1), (4, 8, 2), (8, 8, 1), (8, 16, 2)), start=1):
            setattr(self, f"layer{i}", nn.Sequential(Block(n_in, n_out, stride), Block(n_out, n_out, 1)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def test_a_residual_network_as_torchvision_lays_it_out():
    plan = find_stages(ResNet())
    assert plan.stages == (("conv1", "bn1", "layer1"), ("layer2",), ("layer3",), ("layer4",))
    assert plan.head == "fc"
    assert plan.group_of("layer2.0.downsample.0.weight") == 1
    assert plan.group_of("bn1.weight") == 0
    assert plan.group_of("fc.bias") == HEAD


def test_a_head_inside_a_container_leaves_the_rest_of_it_trainable():
    body = nn.Sequential(conv(1, 4), conv(4, 4))
    tail = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = find_stages(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), tail))
    assert plan.head == "3.2"
    assert "3.0" in [name for stage in plan.stages for name in stage]


@pytest.mark.parametrize("model", [ResNet(), nn.Sequential(conv(1, 4), nn.Flatten(), nn.Linear(4, 2))])
def test_every_parameter_has_exactly_one_group_and_groups_follow_the_order_of_the_network(model):
    plan = find_stages(model)
    groups = [plan.group_of(name) for name, _ in model.named_parameters()]
    assert groups == sorted(groups)
    claimed = [name for stage in plan.stages for name in stage]
    assert len(claimed) == len(set(claimed))


@pytest.mark.parametrize(
    ("model", "words"), [(nn.Flatten(), "no parameters"), (nn.Conv2d(1, 2, 3), "no nn.Linear layer")]
)
def test_networks_without_stages_or_head_are_refused(model, words):
    with pytest.raises(InputError, match=words):
        find_stages(model)
