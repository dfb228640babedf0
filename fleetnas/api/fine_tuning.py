"""Fine-tune a subnet into a bundle of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.output_files import check_file
from fleetnas.supernet_export.training.fine_tuning_recipe import FineTuningRecipe
from fleetnas.supernet_export.training.fine_tuning_state import check_unfinished
from fleetnas.supernet_export.training.requirements import require_torch

__all__ = ["FineTuningRecipe", "fine_tune"]


def fine_tune(
    bundle: SupernetBundle,
    architecture: Architecture,
    output: Path | str,
    *,
    images: Path | str | None = None,
    validation: Path | str | None = None,
    teacher: SupernetBundle | Literal["largest"] | None = "largest",
    recipe: FineTuningRecipe | None = None,
    resume: bool = False,
) -> tuple[SupernetBundle, float | None]:
    """Train one subnet by itself, and write it as a bundle of one network. Needs torch.

    Args:
        bundle: an open bundle.
        architecture: a point of the bundle's design space.
        output: the `.supernet` file to write, which must not exist.
        images: a folder with one folder of images per class, to train on. The digits need none.
        validation: the same, to evaluate the result on.
        teacher: the bundle whose largest subnet teaches, of the same classes; `largest`: that of `bundle` itself; None:
            labels alone teach.
        recipe: epochs, learning rate and the like.
        resume: continue an interrupted training of `output`, which began with the same arguments.

    Returns:
        The new bundle, and top-1 of its exported file on the validation images, a fraction; None without images.

    Raises:
        ArchitectureError: the architecture is not in the design space.
        MissingDependencyError: torch is not installed.
        TrainingError: the loss is not finite.
        UsageError: images cannot be used, or the output or its unfinished training exists.
    """
    require_torch("fine-tuning")
    from fleetnas.supernet_export.training import fine_tuning

    path = Path(output)
    check_file("output", path, ".supernet", strict=True)
    check_unfinished(path, resume=resume)
    teaching = bundle if teacher == "largest" else teacher
    if teaching is bundle and bundle.space.size == 1:
        raise UsageError(f"{bundle.path} holds one network, which cannot teach itself: give another teacher, or None")
    request = fine_tuning.FineTuningRequest(
        bundle=bundle,
        architecture=architecture,
        images=Path(images) if images is not None else None,
        validation=Path(validation) if validation is not None else None,
        teacher=teaching,
        output=path,
        recipe=recipe or FineTuningRecipe(),
    )
    found = fine_tuning.fine_tune(request, fine_tuning.FineTuningEvents(), resume=resume)
    return SupernetBundle.open(path, expected_sha256=found.sha256), found.after
