"""The check of images before a training's first epoch, and batches of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rigs.small_images import write_images  # noqa: E402

from fleetnas.fleet_protocol.errors import UsageError  # noqa: E402
from fleetnas.supernet_export.evaluation.image_source import square  # noqa: E402
from fleetnas.supernet_export.preprocessing import IMAGENET  # noqa: E402
from fleetnas.supernet_export.training.data_set import open_data_sets  # noqa: E402
from fleetnas.supernet_export.training.image_batches import FolderBatches, ImageStore  # noqa: E402
from fleetnas.supernet_export.training.ranks import Ranks  # noqa: E402


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_images(tmp_path / "train", 5), write_images(tmp_path / "val", 3, seed=1)


def refused(train: Path, val: Path) -> str:
    with pytest.raises(UsageError) as refusal:
        open_data_sets(train, val)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_images_are_listed_by_class(folders):
    sets = open_data_sets(*folders)
    assert sets.class_names == ("columns", "plain", "rows")
    assert np.bincount(sets.train.labels).tolist() == [5, 5, 5]
    assert len(sets.val) == 9


def test_all_faults_are_named_at_once(folders):
    train, val = folders
    for image in (train / "plain").iterdir():
        image.unlink()
    for image in sorted((train / "rows").iterdir())[1:]:
        image.unlink()
    shutil.rmtree(val / "columns")
    (val / "other").mkdir()
    message = refused(train, val)
    for part in ("no images", "'plain'", "one image only", "'rows'", "no folder", "'columns'", "'other'"):
        assert part in message


def test_corrupt_files_are_named(folders):
    train, val = folders
    (train / "rows" / "0.png").write_bytes(b"no image")
    whole = (val / "plain" / "1.png").read_bytes()
    (val / "plain" / "1.png").write_bytes(whole[: len(whole) // 2])
    message = refused(train, val)
    assert "rows/0.png (it is no image)" in message
    assert "plain/1.png" in message
    assert "2 of 24 images" in message


def test_one_folder_cannot_be_both_parts(folders):
    train, _ = folders
    assert "itself" in refused(train, train)
    assert "lie in each other" in refused(train, train / "rows")


def test_one_class_alone_is_refused(tmp_path):
    train, val = (write_images(tmp_path / part, 2, classes=("rows",)) for part in ("train", "val"))
    assert "one class only" in refused(train, val)


def test_images_in_both_parts_are_warned_about(folders):
    train, val = folders
    shutil.copy(train / "rows" / "2.png", val / "rows" / "copy.png")
    lines: list[str] = []
    open_data_sets(train, val, warn=lines.append)
    assert len(lines) == 1
    assert "1 of 10 images" in lines[0]
    assert "rows/copy.png = rows/2.png" in lines[0]


def batches(
    train: Path, val: Path, *, workers: int = 0, keep: int = 1 << 30, ranks: Ranks | None = None, size: int = 4
):
    store = ImageStore(open_data_sets(train, val).train, IMAGENET, square)
    store.keep(keep)
    return FolderBatches(
        store, resolutions=(12, 16), batch_size=size, seed=3, workers=workers, ranks=ranks or Ranks(device="cpu")
    )


def drawn(found: FolderBatches, epoch: int, skip: int = 0):
    return list(found.epoch(epoch, skip, np.random.default_rng(0)))


def test_an_epoch_shows_every_image_once_in_equal_batches(folders):
    epoch = drawn(batches(*folders), 0)
    assert sorted(np.concatenate([batch.chosen for batch in epoch]).tolist()) == list(range(15))
    assert [len(batch.chosen) for batch in epoch] == [4, 4, 4, 3]
    assert {batch.inputs.shape[1:] for batch in epoch} <= {(3, 12, 12), (3, 16, 16)}
    again = drawn(batches(*folders), 1)
    assert [batch.chosen.tolist() for batch in epoch] != [batch.chosen.tolist() for batch in again]


def test_batches_depend_neither_on_workers_nor_memory_nor_a_new_start(folders):
    expected = drawn(batches(*folders), 2)
    for found in (batches(*folders, workers=2), batches(*folders, keep=0)):
        for one, other in zip(drawn(found, 2), expected, strict=True):
            np.testing.assert_array_equal(one.inputs, other.inputs)
    for one, other in zip(drawn(batches(*folders), 2, skip=2), expected[2:], strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)


def test_processes_share_each_batch(folders):
    whole = drawn(batches(*folders), 0)
    parts = [drawn(batches(*folders, ranks=Ranks(rank, 2)), 0) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([first.inputs, second.inputs]), batch.inputs)
        np.testing.assert_array_equal(np.concatenate([first.own_labels, second.own_labels]), batch.labels)


def test_no_batch_is_too_small_for_batch_norm_or_for_all_processes(folders):
    assert [len(batch.chosen) for batch in drawn(batches(*folders, size=2), 0)] == [3, 2, 2, 2, 2, 2, 2]
    shares = [drawn(batches(*folders, size=2, ranks=Ranks(rank, 2)), 0) for rank in range(2)]
    assert [[len(batch.inputs) for batch in share] for share in shares] == [[2] + [1] * 6, [1] * 7]
    shares = [drawn(batches(*folders, size=4, ranks=Ranks(rank, 4)), 0) for rank in range(4)]
    assert {len(batch.inputs) for share in shares for batch in share} == {1, 2}
