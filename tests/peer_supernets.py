"""The peer's supernets with random weights, and its subnets: what ours must equal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer import import_peer

from fleet_protocol.architecture import Architecture
from supernet_export.graph import Array

#: Name here: (class in the peer, its arguments, design space, the space's options).
FAMILIES: Mapping[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "ofa-mbv3-w1.0": ("OFAMobileNetV3", {"width_mult": 1.0}, "ofa-mbv3", {"width": 1.0}),
    "ofa-mbv3-w1.2": ("OFAMobileNetV3", {"width_mult": 1.2}, "ofa-mbv3", {"width": 1.2}),
    "ofa-proxyless-w1.3": ("OFAProxylessNASNets", {"width_mult": 1.3}, "ofa-proxyless", {"width": 1.3}),
    "ofa-resnet50": ("OFAResNets", {}, "ofa-resnet50", {}),
}
_MBCONV = {"ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4]}
_RESNET = {"depth_list": [0, 1, 2], "expand_ratio_list": [0.2, 0.25, 0.35], "width_mult_list": [0.65, 0.8, 1.0]}


def peer_supernet(family: str, seed: int = 0) -> Any:
    """The peer's supernet in evaluation mode; batch norms and kernel transforms random as well."""
    torch = pytest.importorskip("torch")
    networks = import_peer()
    name, arguments, _, _ = FAMILIES[family]
    elastic = _RESNET if name == "OFAResNets" else _MBCONV
    torch.manual_seed(seed)
    net = getattr(networks, name)(dropout_rate=0, **arguments, **elastic)
    random = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=random)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=random)
            module.bias.data.normal_(0, 0.2, generator=random)
    for name, parameter in net.named_parameters():
        if name.endswith("_matrix"):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    # Statistics of the largest subnet at the largest size: activations stay in the range of trained networks.
    running_statistics = import_peer("ofa.imagenet_classification.elastic_nn.utils").set_running_statistics
    running_statistics(net, [(torch.randn(2, 3, 224, 224, generator=random), None)])
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # A channel that was silent on these few images would amplify rounding errors some hundred times.
            module.running_var.clamp_(min=0.1 * float(module.running_var.mean()))
    return net.eval()


def peer_subnet(net: Any, architecture: Architecture) -> Any:
    """The peer's own subnet with the supernet's weights."""
    keys = {key: list(getattr(architecture, key)) for key in ("ks", "e", "d", "w") if getattr(architecture, key)}
    net.set_active_subnet(**keys)
    return net.get_active_subnet(preserve_weight=True).eval()


def peer_logits(subnet: Any, images: Array) -> Array:
    """The subnet's logits, shape (n, classes)."""
    import torch

    with torch.no_grad():
        return np.asarray(subnet(torch.from_numpy(images)).numpy())


def save_checkpoint(net: Any, path: Path) -> Path:
    """The supernet as the peer's trainer saves it."""
    import torch

    torch.save({"state_dict": net.state_dict()}, path)
    return path
