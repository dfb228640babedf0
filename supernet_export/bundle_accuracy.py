"""Put an accuracy predictor into a bundle that is there already."""

from __future__ import annotations

from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.bundle import ACCURACY_PREFIX, SupernetBundle, write_bundle
from fleetnas.supernet_export.manifest import AccuracyPredictorInfo


def put_accuracy_predictor(bundle: SupernetBundle, predictor: AccuracyPredictor, source: str) -> str:
    """Write the bundle's file again with `predictor` in place of its own, at once; return the new SHA-256.

    Everything else stays, byte for byte. `bundle` keeps the content that it was opened with. `source` says what the
    predictor was fitted on. `UsageError` where the predictor is not one of the bundle's design space.
    """
    predictor.check_space(bundle.space)
    info = AccuracyPredictorInfo(source=source, held_out=predictor.held_out)
    manifest = bundle.manifest.model_copy(update={"accuracy_predictor": info})
    tensors = {name: bundle.tensor(name) for name in bundle.names if not name.startswith(ACCURACY_PREFIX)}
    tensors |= {f"{ACCURACY_PREFIX}{name}": array for name, array in predictor.tensors().items()}
    return write_bundle(bundle.path.resolve(), manifest, tensors)  # a link goes on naming the same file
