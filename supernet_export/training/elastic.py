"""The elastic network in torch: one set of weights, of which `set_active` selects a subnet.

Source of the semantics: Cai et al., *Once-for-All* (ICLR 2020) and the published checkpoints, whose parameter names
this module has. A subnet takes the first channels of each convolution and the first blocks of each stage.
"""

# Linting must not need torch, so its classes are Any here.
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork
from fleetnas.supernet_export.training.elastic_layers import (
    BatchNorm,
    Classifier,
    ElasticMBConv,
    FixedMBConv,
    Residual,
    conv_layer,
)


class ElasticMBConvNet(nn.Module):
    """An `MBConvNetwork` with elastic kernels, expand ratios and depths; starts as its largest subnet.

    Input: images, float32 of shape (n, image_channels, r, r), any r. Output: logits, shape (n, classes).
    """

    def __init__(
        self, network: MBConvNetwork, kernels: Sequence[int], expands: Sequence[float], depths: Sequence[int]
    ) -> None:
        super().__init__()
        self.network = network
        self.stage_of = [block.stage for block in network.blocks()]
        self.position_of = [block.position for block in network.blocks()]
        self.depths = tuple(depths)
        self.active_depths = [min(max(depths), most) for most in network.stage_blocks]
        epsilon = network.batch_norm_epsilon
        self.first_conv = conv_layer(
            network.image_channels, network.stem_width, 3, network.stem_stride, network.stem_activation, epsilon
        )
        blocks: list[nn.Module] = [
            Residual(
                FixedMBConv(network),
                shortcut=network.first_block_residual and network.stem_width == network.first_block_width,
            )
        ]
        blocks += [
            Residual(ElasticMBConv(block, kernels, expands, epsilon), shortcut=block.residual)
            for block in network.blocks()
        ]
        self.blocks = nn.ModuleList(blocks)
        last = network.stage_widths[-1]
        wide, act = network.final_expand_width, network.head_activation
        self.final_expand_layer = None if wide is None else conv_layer(last, wide, 1, 1, act, epsilon)
        self.feature_mix_layer = conv_layer(
            wide or last, network.feature_width, 1, 1, act, epsilon if wide is None else None
        )
        self.classifier = Classifier(network.feature_width, network.classes)
        self._initialise()

    def _initialise(self) -> None:
        """He's normal initialisation over the outputs, as OFA does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def set_active(self, architecture: Architecture) -> None:
        """Make `forward` compute this subnet; entries of blocks beyond their stage's depth are ignored."""
        wanted = {"ks": len(self.stage_of), "e": len(self.stage_of), "d": len(self.active_depths)}
        for key, count in wanted.items():
            found = len(getattr(architecture, key))
            if found != count:
                raise ArchitectureError(f"this network takes {count} entries in {key!r}, found {found}")
        self.active_depths = [
            min(depth, most) for depth, most in zip(architecture.d, self.network.stage_blocks, strict=True)
        ]
        for i, block in enumerate(self.blocks[1:]):
            if self.position_of[i] < self.active_depths[self.stage_of[i]]:
                block.mobile_inverted_conv.set_active(architecture.ks[i], architecture.e[i])

    def sort_channels(self, within: Sequence[float]) -> None:
        """Put every block's most important expanded channels first, for the smaller expand ratios to keep.

        A channel's importance is the L1 norm of the projection's weights for it. `within` are expand ratios that were
        trained already: no channel crosses their widths, so their subnets compute the same as before (except for
        squeeze and excite, whose inner channels are sorted too). Source: `re_organize_middle_weights` of the
        once-for-all project.
        """
        for block in self.blocks[1:]:
            block.mobile_inverted_conv.sort_channels(within)

    def forward(self, x: Tensor) -> Tensor:
        """Return the active subnet's logits, shape (n, classes)."""
        x = self.blocks[0](self.first_conv(x))
        for i, block in enumerate(self.blocks[1:]):
            if self.position_of[i] < self.active_depths[self.stage_of[i]]:
                x = block(x)
        if self.final_expand_layer is None:
            x = self.feature_mix_layer(x).mean((2, 3))
        else:
            x = self.final_expand_layer(x).mean((2, 3), keepdim=True)
            x = self.feature_mix_layer(x).flatten(1)
        out: Tensor = self.classifier(x)
        return out

    def set_synchronised(self, synchronised: bool) -> None:
        """Normalise by the batches of all processes in training, or by this process's alone."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.set_synchronised(synchronised)

    @torch.no_grad()
    def calibrate(self, *batches: Tensor) -> None:
        """Set the active subnet's batch-norm statistics to the mean of those of the batches of images."""
        norms = [module for module in self.modules() if isinstance(module, BatchNorm)]
        training = self.training
        self.eval()
        for norm in norms:
            norm.set_calibrating(True)
        for images in batches:
            self(images)
        for norm in norms:
            norm.set_calibrating(False)
        self.train(training)
