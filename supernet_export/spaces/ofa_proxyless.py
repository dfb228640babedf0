"""Define `ofa-proxyless`: the design space of OFA-ProxylessNAS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork, make_divisible
from fleetnas.supernet_export.spaces.ofa_mbv3 import RESOLUTIONS, check_resolutions

_STAGE_WIDTHS = (24, 40, 80, 96, 192, 320)


def proxyless(width: float) -> MBConvNetwork:
    """Return the fixed part of OFA-ProxylessNAS at a width multiplier."""
    return MBConvNetwork(
        stem_width=make_divisible(32 * width),
        stem_stride=2,
        stem_activation="relu6",
        first_block_width=make_divisible(16 * width),
        first_block_activation="relu6",
        stage_widths=tuple(make_divisible(channels * width) for channels in _STAGE_WIDTHS),
        stage_blocks=(4, 4, 4, 4, 4, 1),
        stage_strides=(2, 2, 2, 1, 2, 1),
        stage_activations=("relu6",) * 6,
        stage_squeeze=(False,) * 6,
        final_expand_width=None,
        feature_width=make_divisible(1280 * width),
        head_activation="relu6",
        classes=1000,
        first_block_residual=False,
        batch_norm_epsilon=1e-3,
    )


class OfaProxylessSpace(MBConvSpace):
    """Five stages of up to four blocks and a last stage of one; kernel 3/5/7, expand ratio 3/4/6, depth 2/3/4.

    Width 1.3 is OFA's published supernet; 1.0 is what ProxylessNAS's block latency table was measured at.
    """

    name = "ofa-proxyless"

    def __init__(self, width: float = 1.3, resolutions: Sequence[int] = RESOLUTIONS) -> None:
        if width not in (1.0, 1.3):
            raise UsageError(f"OFA-ProxylessNAS comes at width 1.3, its latency table at 1.0; {width:g} is neither")
        self.width = width
        super().__init__(proxyless(width), resolutions=check_resolutions(resolutions))

    @property
    def options(self) -> Mapping[str, Any]:
        """The constructor's options, for a bundle's manifest."""
        return {"width": self.width, "resolutions": list(self.resolutions)}
