"""One-hot rows of inverted-bottleneck spaces, against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.registry import make_space


@pytest.mark.parametrize("name", ["ofa-mbv3", "ofa-proxyless", "compofa", "compofa-elastic", "digits"])
def test_a_row_has_a_one_for_each_choice_of_a_present_block_and_one_for_the_resolution(name: str) -> None:
    space = make_space(name, {})
    assert isinstance(space, MBConvSpace)
    genomes = space.sample(40, np.random.default_rng(0))
    rows = space.one_hot(genomes)
    blocks, kernels, expands = space.block_count, len(space.kernels), len(space.expands)
    for architecture, row in zip(space.decode(genomes), rows, strict=True):
        wanted = np.zeros(blocks * (kernels + expands), np.float32)
        for block in range(blocks):
            if architecture.ks[block]:  # 0: the block is absent
                wanted[block * kernels + space.kernels.index(architecture.ks[block])] = 1.0
                place = [float(ratio) for ratio in space.expands].index(float(architecture.e[block]))
                wanted[blocks * kernels + block * expands + place] = 1.0
        np.testing.assert_array_equal(row[: len(wanted)], wanted)
        assert row[len(wanted) :].sum() == 1.0
    assert space.one_hot(genomes[:0]).shape == (0, rows.shape[1])
