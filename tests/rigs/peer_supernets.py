"""The peer's supernets with random weights, and its subnets: what ours must equal."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.graph import Array, Graph
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from rigs.logit_parity import photo_like
from rigs.peer import import_peer

#: CompOFA trains OFA's network without kernel transforms, and publishes it under the older names.
COMPOFA = ("compofa", "compofa-elastic")
#: Name here: (class in the peer, its arguments, design space, the space's options).
FAMILIES: Mapping[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "ofa-mbv3-w1.0": ("OFAMobileNetV3", {"width_mult": 1.0}, "ofa-mbv3", {"width": 1.0}),
    "ofa-mbv3-w1.2": ("OFAMobileNetV3", {"width_mult": 1.2}, "ofa-mbv3", {"width": 1.2}),
    "ofa-proxyless-w1.3": ("OFAProxylessNASNets", {"width_mult": 1.3}, "ofa-proxyless", {"width": 1.3}),
    "ofa-resnet50": ("OFAResNets", {}, "ofa-resnet50", {}),
    "compofa": ("OFAMobileNetV3", {"width_mult": 1.0}, "compofa", {}),
    "compofa-elastic": ("OFAMobileNetV3", {"width_mult": 1.0}, "compofa-elastic", {}),
}
_CALIBRATION_IMAGES, _IMAGES = 6, 3
_MBCONV = {"ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4]}
_RESNET = {"depth_list": [0, 1, 2], "expand_ratio_list": [0.2, 0.25, 0.35], "width_mult_list": [0.65, 0.8, 1.0]}


@dataclass(frozen=True)
class Configuration:
    """A network of the peer's with other choices than the published ones, and our space of it.

    `elastic` replaces the peer's lists of choices; the peer has colour images only, so that for `channels` other than 3
    its first convolution is replaced.
    """

    network: str
    space: str
    options: Mapping[str, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    elastic: Mapping[str, list[float]] = field(default_factory=dict)
    channels: int = 3


_OWN = {"ks_list": [3, 5], "expand_ratio_list": [2, 4], "depth_list": [1, 2]}
_OWN_OPTIONS = {"kernels": [3, 5], "expands": [2, 4], "depths": [1, 2], "width": 0.5, "classes": 8}
#: Networks that ImageNet does not have: one change each, then all of them in every family.
CONFIGURATIONS: Mapping[str, Configuration] = {
    "8 classes": Configuration("OFAMobileNetV3", "ofa-mbv3", {"classes": 8}, {"n_classes": 8}),
    "width 0.5": Configuration("OFAMobileNetV3", "ofa-mbv3", {"width": 0.5}, {"width_mult": 0.5}),
    "kernels 3, 5": Configuration("OFAMobileNetV3", "ofa-mbv3", {"kernels": [3, 5]}, elastic={"ks_list": [3, 5]}),
    "expand ratios 2, 4": Configuration(
        "OFAMobileNetV3", "ofa-mbv3", {"expands": [2, 4]}, elastic={"expand_ratio_list": [2, 4]}
    ),
    "depths 1 to 3": Configuration(
        "OFAMobileNetV3", "ofa-mbv3", {"depths": [1, 2, 3]}, elastic={"depth_list": [1, 2, 3]}
    ),
    "depths 2 to 5": Configuration(
        "OFAMobileNetV3", "ofa-mbv3", {"depths": [2, 3, 4, 5]}, elastic={"depth_list": [2, 3, 4, 5]}
    ),
    "grey": Configuration("OFAMobileNetV3", "ofa-mbv3", {"image_channels": 1}, channels=1),
    "all, MobileNetV3": Configuration(
        "OFAMobileNetV3",
        "ofa-mbv3",
        {**_OWN_OPTIONS, "image_channels": 1, "aspect": [3, 4]},
        {"n_classes": 8, "width_mult": 0.5},
        _OWN,
        1,
    ),
    "all, ProxylessNAS": Configuration(
        "OFAProxylessNASNets",
        "ofa-proxyless",
        {**_OWN_OPTIONS, "image_channels": 1, "aspect": [4, 3]},
        {"n_classes": 8, "width_mult": 0.5},
        _OWN,
        1,
    ),
    "ResNet": Configuration(
        "OFAResNets",
        "ofa-resnet50",
        {"classes": 8, "depths": [0, 1], "expands": [0.25, 0.5], "widths": [0.25, 0.5], "aspect": [3, 4]},
        {"n_classes": 8},
        {"depth_list": [0, 1], "expand_ratio_list": [0.25, 0.5], "width_mult_list": [0.25, 0.5]},
    ),
}


def peer_supernet(family: str, seed: int = 0) -> Any:
    """The peer's published supernet in evaluation mode; batch norms and kernel transforms random as well."""
    name, arguments, space, options = FAMILIES[family]
    return configured_supernet(Configuration(name, space, options, arguments), seed)


def configured_supernet(configuration: Configuration, seed: int = 0) -> Any:
    """The same of any configuration."""
    torch = pytest.importorskip("torch")
    networks = import_peer()
    elastic = {**(_RESNET if configuration.network == "OFAResNets" else _MBCONV), **configuration.elastic}
    torch.manual_seed(seed)
    net = getattr(networks, configuration.network)(dropout_rate=0, **configuration.arguments, **elastic)
    if configuration.channels != 3:
        first = net.first_conv.conv
        net.first_conv.conv = torch.nn.Conv2d(configuration.channels, first.out_channels, 3, 2, 1, bias=False)
    random = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight, generator=random)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=random)
            module.bias.data.normal_(0, 0.2, generator=random)
    for name, parameter in net.named_parameters():
        if name.endswith("_matrix"):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    # Statistics of the largest subnet: activations stay in the range of trained networks.
    calibrate_peer(net, photo_like(2, (configuration.channels, 128, 128), np.random.default_rng(seed)))
    return net.eval()


@contextlib.contextmanager
def kernels_of(family: str) -> Iterator[None]:
    """While this is open, the peer's smaller kernels are those of the family: CompOFA does not transform them."""
    elastic = import_peer("ofa.imagenet_classification.elastic_nn.modules.dynamic_op").DynamicSeparableConv2d
    before = elastic.KERNEL_TRANSFORM_MODE
    elastic.KERNEL_TRANSFORM_MODE = None if family in COMPOFA else before
    try:
        yield
    finally:
        elastic.KERNEL_TRANSFORM_MODE = before


def calibrate_peer(net: Any, images: Array) -> None:
    """The peer's `set_running_statistics` on images (n, 3, height, width)."""
    import torch

    running_statistics = import_peer("ofa.imagenet_classification.elastic_nn.utils").set_running_statistics
    running_statistics(net, [(torch.from_numpy(images), None)])
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # A channel that was silent on these few images would amplify rounding errors some hundred times.
            module.running_var.clamp_(min=0.1 * float(module.running_var.mean()))


def peer_subnet(net: Any, architecture: Architecture) -> Any:
    """The peer's own subnet with the supernet's weights."""
    keys = {key: list(getattr(architecture, key)) for key in ("ks", "e", "d", "w") if getattr(architecture, key)}
    net.set_active_subnet(**keys)
    return net.get_active_subnet(preserve_weight=True).eval()


@dataclass(frozen=True)
class Compared:
    """A subnet of ours and the logits of the peer's own, both calibrated by the peer, on images that tell."""

    graph: Graph
    images: Array
    expected: Array


def compared(net: Any, bundle: SupernetBundle, architecture: Architecture, rng: np.random.Generator) -> Compared:
    """That architecture in the peer's supernet and in our bundle of it."""
    import torch

    raw = slice_subnet(bundle, architecture)
    images = photo_like(_CALIBRATION_IMAGES + _IMAGES, raw.input_shape, rng)
    subnet = peer_subnet(net, architecture)
    calibrate_peer(subnet, images[_IMAGES:])
    norms = [module for module in subnet.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    pairs = [(norm.running_mean.numpy(), norm.running_var.numpy()) for norm in norms]
    names = [conv.name for conv in raw.convolutions() if conv.norm is not None]
    graph = slice_subnet(bundle, architecture, dict(zip(names, pairs, strict=True)))
    return Compared(graph, images[:_IMAGES], peer_logits(subnet, images[:_IMAGES]))


def peer_logits(subnet: Any, images: Array) -> Array:
    """The subnet's logits, shape (n, classes)."""
    import torch

    with torch.no_grad():
        return np.asarray(subnet(torch.from_numpy(images)).numpy())


def save_checkpoint(net: Any, path: Path, *, older_names: bool = False) -> Path:
    """The supernet as the peer's trainer saves it."""
    import torch

    state = net.state_dict()
    if older_names:
        state = {re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.", name): x for name, x in state.items()}
    torch.save({"state_dict": state}, path)
    return path
