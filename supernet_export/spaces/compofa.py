"""Define `compofa` and `compofa-elastic`: OFA-MobileNetV3 with depth and expand ratio tied per stage.

Source: Sahni et al., *CompOFA* (ICLR 2021) and its authors' repository (gatech-sysml/CompOFA), from which the fixed
kernel sizes are taken.
"""

from __future__ import annotations

from typing import ClassVar

from fleetnas.supernet_export.spaces.ofa_mbv3 import OfaMbv3Options, OfaMbv3Space
from fleetnas.supernet_export.spaces.options import StageKernels

#: Kernel size of every block of a stage.
STAGE_KERNELS = (3, 5, 3, 3, 5)


class CompOfaElasticSpace(OfaMbv3Space):
    """Depth 2/3/4 of a stage fixes its expand ratio to 3/4/6; kernels are elastic per block.

    The i-th depth has the i-th expand ratio. Genes: resolution, depth per stage, kernel per block.
    """

    name = "compofa-elastic"
    _tied = True


class CompOfaOptions(OfaMbv3Options):
    """Options of `compofa`."""

    stage_kernels: StageKernels | None = STAGE_KERNELS


class CompOfaSpace(CompOfaElasticSpace):
    """`compofa-elastic` with one kernel size per stage: 243 networks at each resolution, few enough to enumerate.

    Genes: resolution, depth per stage.
    """

    name = "compofa"
    _options_model: ClassVar[type[OfaMbv3Options]] = CompOfaOptions
