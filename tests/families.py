"""Tiny networks of the families that people bring, from torchvision and timm; both need a stub on a CPU build.

The registry's torchvision does not import beside a CPU build of torch, because two of its operators are missing.
Declaring them is enough: nothing here calls them.
"""

import functools

import pytest
import torch
from torch import nn

SIDE = 32
FAMILIES = ("resnet", "vgg", "convnext", "efficientnet", "mobilenet", "vit", "sequential")


@functools.cache
def _declare_operators():
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # a build that belongs to this torch has them
            continue
    return library


def library(name):
    """Import torchvision, timm or transformers, or skip the test."""
    _declare_operators()
    pytest.importorskip("torchvision", exc_type=ImportError)
    return pytest.importorskip(name, exc_type=ImportError)


def sequential(classes):
    layers = []
    for n_in, n_out in ((3, 8), (8, 8), (8, 16), (16, 16)):
        layers += [nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


def _resnet(_, classes):
    return library("timm").create_model("test_resnet", pretrained=False, num_classes=classes)


def _vgg(models, classes):
    plan = [8, "M", 8, "M", 16, "M", 16, 16, "M"]
    net = models.VGG(models.vgg.make_layers(plan, batch_norm=True), num_classes=classes, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Sequential(nn.Linear(16, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, classes))
    return net


def _convnext(models, classes):
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(8, 8, 1), block(8, 16, 1), block(16, 16, 1), block(16, None, 1)], num_classes=classes)


def _efficientnet(models, classes):
    block = functools.partial(models.efficientnet.MBConvConfig, width_mult=1.0, depth_mult=1.0)
    plan = [block(1, 3, 1, 8, 8, 1), block(2, 3, 2, 8, 16, 1), block(2, 3, 1, 16, 16, 1), block(2, 3, 2, 16, 16, 1)]
    return models.EfficientNet(plan, dropout=0.2, num_classes=classes, last_channel=32)


def _mobilenet(models, classes):
    plan = [[1, 8, 1, 1], [2, 8, 1, 2], [2, 16, 2, 2], [2, 16, 1, 1]]
    return models.MobileNetV2(num_classes=classes, width_mult=0.25, inverted_residual_setting=plan)


def _vit(models, classes):
    sizes = {"num_layers": 4, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return models.VisionTransformer(image_size=SIDE, patch_size=8, num_classes=classes, dropout=0.1, **sizes)


BUILDERS = {
    "resnet": _resnet,
    "vgg": _vgg,
    "convnext": _convnext,
    "efficientnet": _efficientnet,
    "mobilenet": _mobilenet,
    "vit": _vit,
}


def build(family, classes, seed=0):
    """A tiny network of a family for 3x32x32 images, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "sequential":
            return sequential(classes).eval()
        return BUILDERS[family](library("torchvision").models, classes).eval()
