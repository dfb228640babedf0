"""Recognise a checkpoint's design space: which families fit its shapes, with which options, and what stays open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fleetnas.supernet_export.checkpoints.facts import Facts, MBConvFacts, ResNetFacts
from fleetnas.supernet_export.spaces.digits import small_network
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork, make_divisible
from fleetnas.supernet_export.spaces.ofa_mbv3 import mobilenet_v3
from fleetnas.supernet_export.spaces.ofa_proxyless import proxyless
from fleetnas.supernet_export.spaces.ofa_resnet50 import LEAST_BLOCKS, STAGE_WIDTHS, STEM_WIDTH

#: Width multipliers that are tried, from 0.05 to 8 in hundredths.
_WIDTHS = tuple(hundredths / 100 for hundredths in range(5, 801))
_PUBLISHED_WIDTHS = (1.0, 1.2, 1.3)
_PUBLISHED = {"kernels": (3, 5, 7), "expands": (3.0, 4.0, 6.0), "depths": (2, 3, 4)}
_RESNET_PUBLISHED = {"expands": (0.2, 0.25, 0.35), "depths": (0, 1, 2), "widths": (0.65, 0.8, 1.0)}


@dataclass(frozen=True)
class Recognition:
    """A design space that fits a checkpoint's shapes.

    `options` are to be given; `assumed` are sentences about choices that shapes do not show, `missing` about what only
    the user knows and that the options lack, `others` further spaces that fit as well.
    """

    space: str
    options: dict[str, Any]
    assumed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def recognise(facts: Facts) -> Recognition | None:
    """Return the design space that fits; None where the tensors are of one network rather than of a supernet."""
    if isinstance(facts, ResNetFacts):
        return _resnet(facts)
    if facts.largest_kernel is None or facts.largest_expand is None:
        return None
    layouts: tuple[tuple[str, Callable[[float, int, int, int], MBConvNetwork], int], ...] = (
        ("ofa-mbv3", mobilenet_v3, 5),
        ("ofa-proxyless", proxyless, 5),
        ("mbconv", small_network, 3),
    )
    for name, network, stages in layouts:
        for width in _widths_like(facts, network):
            blocks = len(facts.blocks) // stages
            if blocks and _fits(network(width, facts.classes, facts.image_channels, blocks), facts):
                return _known_layout(name, facts, width, blocks)
    return _own_layout(facts)


def _widths_like(facts: MBConvFacts, network: Callable[[float, int, int, int], MBConvNetwork]) -> Iterable[float]:
    """Return the multipliers that give the classifier's width, the roundest first."""
    at_one = network(1.0, 1, 1, 1).feature_width
    fitting = [width for width in _WIDTHS if make_divisible(at_one * width) == facts.feature_width]
    return sorted(fitting, key=lambda width: (width not in _PUBLISHED_WIDTHS, len(f"{width:g}"), width))


def _fits(network: MBConvNetwork, facts: MBConvFacts) -> bool:
    ours = [(block.in_width, block.out_width, block.squeeze) for block in network.blocks()]
    theirs = [(block.in_width, block.out_width, block.squeeze) for block in facts.blocks]
    return ours == theirs and (
        (network.stem_width, network.first_block_width, network.final_expand_width, network.feature_width)
        == (facts.stem_width, facts.first_block_width, facts.final_expand_width, facts.feature_width)
    )


def _known_layout(name: str, facts: MBConvFacts, width: float, blocks: int) -> Recognition:
    options: dict[str, Any] = {"width": width} if name != "mbconv" or width != 1 else {}
    assumed: list[str] = []
    others: tuple[str, ...] = ()
    defaults = {"classes": 1000, "image_channels": 3}
    if name == "mbconv":
        defaults["classes"] = 10
        assumed.append("strides and activations are those of mbconv's default layout, which has the same shapes")
        if facts.classes == 10 and facts.image_channels == 1:
            name, options, defaults, others = "digits", {}, {"classes": 10, "image_channels": 1}, ("mbconv",)
            if width != 1:
                options["width"] = width
    if name == "ofa-mbv3" and not facts.transformed_kernels and facts.largest_kernel != min(_PUBLISHED["kernels"]):
        name, others = "compofa-elastic", ("compofa",)
        assumed.append("smaller kernels are the centres of larger ones, as in CompOFA: there are no transform matrices")
    options |= {
        key: value
        for key, value in (("classes", facts.classes), ("image_channels", facts.image_channels))
        if value != defaults[key]
    }
    choices = _choices(facts, blocks, assumed)
    options |= {key: list(value) for key, value in choices.items() if value != _PUBLISHED[key]}
    missing: tuple[str, ...] = ()
    if name.startswith("compofa") and len(choices["depths"]) != len(choices["expands"]):
        missing = ("as many `depths` as `expands`: CompOFA ties them",)
    return Recognition(name, options, tuple(assumed), missing, others)


def _choices(facts: MBConvFacts, blocks: int, assumed: list[str]) -> dict[str, Sequence[float]]:
    """Return the kernels, expand ratios and depths; add to `assumed` what shapes do not show of them."""
    kernel, expand = facts.largest_kernel or 0, facts.largest_expand or 0
    kernels: Sequence[float] = facts.transformed_kernels or _up_to(kernel, _PUBLISHED["kernels"])
    expands, depths = _up_to(expand, _PUBLISHED["expands"]), _up_to(blocks, _PUBLISHED["depths"])
    if not facts.transformed_kernels:
        assumed.append(_only_largest("kernel sizes", "kernels", kernel, kernels))
    assumed.append(_only_largest("expand ratios", "expands", expand, expands))
    assumed.append(_only_largest("depths", "depths", blocks, depths))
    return {"kernels": kernels, "expands": expands, "depths": depths}


def _up_to(largest: float, published: Sequence[float]) -> Sequence[float]:
    """Return the published choices where these have the same largest one, else the largest alone."""
    return published if published[-1] == largest else (int(largest) if largest == int(largest) else largest,)


def _only_largest(what: str, option: str, largest: float, taken: Sequence[float]) -> str:
    others = "" if len(taken) > 1 else f"; add smaller ones that were trained to {option!r}"
    return f"{what} {', '.join(f'{value:g}' for value in taken)}: shapes show only the largest, {largest:g}{others}"


def _own_layout(facts: MBConvFacts) -> Recognition:
    """Return `mbconv` with the stages that shapes show."""
    stages = [
        {"width": stage[0].out_width, "squeeze": stage[0].squeeze, "blocks": len(stage)} for stage in facts.stages
    ]
    assumed: list[str] = []
    choices = _choices(facts, max(len(stage) for stage in facts.stages), assumed)
    options: dict[str, Any] = {
        "classes": facts.classes,
        "image_channels": facts.image_channels,
        "stem": {"width": facts.stem_width},
        "first_block": {"width": facts.first_block_width},
        "stages": stages,
        "head": {"expand_width": facts.final_expand_width, "features": facts.feature_width},
    }
    options |= {key: list(value) for key, value in choices.items()}
    missing = (
        "`stride` and `activation` of the stem and of each stage, `activation` of first block and head",
        "`residual` of the first block, and batch_norm_epsilon, where they are not the defaults",
        "where a stage does not change the number of channels, it is counted to the stage before it",
    )
    return Recognition("mbconv", options, tuple(assumed), missing)


def _resnet(facts: ResNetFacts) -> Recognition | None:
    expand = facts.largest_expand
    if expand is None:
        return None
    options: dict[str, Any] = {}
    if facts.image_channels != 3:
        options["image_channels"] = facts.image_channels
    assumed = [f"expand ratios up to {expand:g}: shapes show only the largest"]
    published = [*STAGE_WIDTHS, STEM_WIDTH]
    widths = [*facts.stage_widths, facts.stem_width]
    multiplier = next(
        (
            w
            for w in sorted(_WIDTHS, key=lambda w: (w != 1, len(f"{w:g}"), w))
            if [make_divisible(channels * w) for channels in published] == widths
        ),
        None,
    )
    extra = {found - least for found, least in zip(facts.stage_blocks, LEAST_BLOCKS, strict=False)}
    ratios = _up_to(expand, _RESNET_PUBLISHED["expands"])
    if multiplier is not None and len(extra) == 1 and min(extra) >= 0:
        most = extra.pop()
        choices = {
            "expands": ratios,
            "depths": _up_to(most, _RESNET_PUBLISHED["depths"]),
            "widths": _up_to(multiplier, _RESNET_PUBLISHED["widths"]),
        }
        options |= {key: list(value) for key, value in choices.items() if value != _RESNET_PUBLISHED[key]}
        if facts.classes != 1000:
            options["classes"] = facts.classes
        assumed = [
            _only_largest("expand ratios", "expands", expand, choices["expands"]),
            _only_largest("depths", "depths", most, choices["depths"]),
            _only_largest("width multipliers", "widths", multiplier, choices["widths"]),
        ]
        return Recognition("ofa-resnet50", options, tuple(assumed))
    stages = [
        {"width": width, "blocks": blocks} for width, blocks in zip(facts.stage_widths, facts.stage_blocks, strict=True)
    ]
    options |= {"classes": facts.classes, "stem": {"width": facts.stem_width}, "stages": stages}
    options |= {"expands": [expand], "depths": [0], "widths": [1.0]}
    missing = (
        "`stride` of the stem and of each stage, `pool` of the stem: shapes show none",
        "`depths` and each stage's least `blocks`: shapes show only their sum",
        "`widths` and `expands` that were trained beside the largest ones",
    )
    return Recognition("resnet", options, tuple(assumed), missing)
