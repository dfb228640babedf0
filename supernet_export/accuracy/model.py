"""Predict accuracy with ReLU networks over one-hot architectures, in numpy.

Source of the method and of the published predictors: Cai et al., *Once-for-All* (ICLR 2020).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import ArchitectureError, CheckpointError, UsageError
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint
from fleetnas.supernet_export.output_files import write_atomically

if TYPE_CHECKING:
    from fleetnas.supernet_export.spaces.base import DesignSpace

Array = NDArray[np.float32]

_HELD_OUT_KEY, _FITTED_ON_KEY = "held_out", "space"
#: Rows that go through the layers together: their activations stay in the processor's cache.
_BLOCK_ROWS = 512
#: Random subnets by which the columns of two spaces are compared.
_COMPARED = 256


@dataclass(frozen=True)
class HeldOut:
    """Error of a predictor on evaluated subnets that it was not fitted on."""

    samples: int  #: evaluated subnets it was fitted on
    held_out: int  #: evaluated subnets that the errors are taken over
    spearman: float  #: rank correlation
    mae_percent: float  #: mean absolute error, in percent of top-1
    rmse_percent: float  #: root-mean-square error, in percent of top-1
    reliability: float | None = None  #: split-half reliability of the measured accuracies, where it is known
    ceiling: float | None = None  #: rank correlation with them that a perfect prediction would have

    def to_json(self) -> dict[str, Any]:
        """Return the error as a JSON object, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class AccuracyPredictor:
    """Predicts top-1 accuracy, as a fraction, of one-hot architectures (`DesignSpace.one_hot`).

    Args:
        weights: per layer, (outputs, inputs); a ReLU follows every layer but the last, which has one output.
        biases: per layer, (outputs,).
        held_out: its own error, if it is known.
    """

    def __init__(self, weights: Sequence[Array], biases: Sequence[Array], held_out: HeldOut | None = None) -> None:
        if not weights or len(weights) != len(biases):
            raise CheckpointError(
                f"an accuracy predictor needs a bias per layer; found {len(weights)} and {len(biases)}"
            )
        width = weights[0].shape[-1]
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != (weight.shape[0],):
                raise CheckpointError(
                    f"layer {layer} of an accuracy predictor must map {width} inputs and have a bias per output; "
                    f"its weight has shape {weight.shape}, its bias {bias.shape}"
                )
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise CheckpointError(f"layer {layer} of an accuracy predictor holds numbers that are not finite")
            width = weight.shape[0]
        if width != 1:
            raise CheckpointError(f"an accuracy predictor must end in one number, this one ends in {width}")
        self._weights = [np.ascontiguousarray(weight, np.float32) for weight in weights]
        self._transposed = [np.ascontiguousarray(weight.T) for weight in self._weights]
        self._biases = [np.ascontiguousarray(bias, np.float32) for bias in biases]
        self.held_out = held_out
        #: Name and options of the design space whose subnets it was fitted to, where a file says it.
        self.fitted_on: tuple[str, dict[str, Any]] | None = None

    def check_space(self, space: DesignSpace, name: str = "the accuracy predictor") -> None:
        """Raise `UsageError` where subnets of `space` have other columns than those that it was fitted to.

        As many columns may mean other choices, and it would predict nonsense. `name` is its name in the message.
        """
        features = space.one_hot(space.smallest()).shape[1]
        if self.features != features:
            raise UsageError(
                f"{name} takes {self.features} features, and {space.name} with these options has {features}; give the "
                "predictor that was fitted on this space"
            )
        if self.fitted_on is not None and not _same_columns(space, *self.fitted_on):
            of, options = self.fitted_on
            raise UsageError(
                f"{name} was fitted to subnets of {of} with other choices ({json.dumps(options)[:300]}) than "
                f"{space.name} has here; give the predictor that was fitted on this space"
            )

    @property
    def features(self) -> int:
        """Width of the one-hot input."""
        return int(self._weights[0].shape[1])

    def predict(self, one_hot: Array) -> Array:
        """Return the top-1 accuracy of `one_hot` (n, F) as fractions, (n,)."""
        found = np.empty(len(one_hot), np.float32)
        for start in range(0, len(one_hot), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            hidden = one_hot[rows]
            for weight, bias in zip(self._transposed[:-1], self._biases[:-1], strict=True):
                hidden = hidden @ weight
                hidden += bias
                np.maximum(hidden, 0.0, out=hidden)
            found[rows] = hidden @ self._weights[-1][0]
        found += self._biases[-1]
        return found

    def gradient(self, one_hot: Array) -> Array:
        """Return the derivative of the prediction by each input, (n, F), exact within a linear piece."""
        found = np.empty(one_hot.shape, np.float32)
        for start in range(0, len(one_hot), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            hidden, layers = one_hot[rows], []
            for weight, bias in zip(self._transposed[:-1], self._biases[:-1], strict=True):
                hidden = hidden @ weight
                hidden += bias
                np.maximum(hidden, 0.0, out=hidden)
                layers.append(hidden)
            back = np.broadcast_to(self._weights[-1][0], hidden.shape)
            for layer, weight in zip(reversed(layers), reversed(self._weights[:-1]), strict=True):
                back = (back * (layer > 0)) @ weight
            found[rows] = back
        return found

    # -- in a bundle, and from the published files ---------------------------------------------------------------

    def tensors(self) -> dict[str, Array]:
        """Return the parameters by name, for a bundle."""
        named: dict[str, Array] = {}
        for layer, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            named[f"{layer}.weight"], named[f"{layer}.bias"] = weight, bias
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array], held_out: HeldOut | None = None) -> AccuracyPredictor:
        """Return the predictor with these `tensors()`; `CheckpointError` if they are not a predictor's."""
        layers = len(tensors) // 2
        wanted = {f"{layer}.{kind}" for layer in range(layers) for kind in ("weight", "bias")}
        if set(tensors) != wanted:
            raise CheckpointError(f"an accuracy predictor has tensors 0.weight, 0.bias, ...; found {sorted(tensors)}")
        return cls(
            [tensors[f"{layer}.weight"] for layer in range(layers)],
            [tensors[f"{layer}.bias"] for layer in range(layers)],
            held_out,
        )

    def save(self, path: Path | str, space: DesignSpace | None = None) -> None:
        """Write it, with its own error and the space that it was fitted on, as a safetensors file."""
        from safetensors.numpy import save

        described = {} if space is None else {_FITTED_ON_KEY: json.dumps(_described(space))}
        described |= {} if self.held_out is None else {_HELD_OUT_KEY: json.dumps(self.held_out.to_json())}
        write_atomically(Path(path), save(self.tensors(), metadata=described))

    @classmethod
    def load(cls, path: Path | str) -> AccuracyPredictor:
        """Read a file of `save`; `CheckpointError` if it holds no accuracy predictor."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described, on = metadata.get(_HELD_OUT_KEY), metadata.get(_FITTED_ON_KEY)
            held_out = None if described is None else HeldOut(**json.loads(described))
            fitted_on = None if on is None else _space_in(json.loads(on))
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path} is not a saved accuracy predictor: {reason}; fit it again") from None
        found = cls.from_tensors(tensors, held_out)
        found.fitted_on = fitted_on
        return found

    @classmethod
    def from_pth(cls, path: Path | str) -> AccuracyPredictor:
        """Read one of OFA's predictors (`acc_predictor.pth`, `ofa_resnet50_acc_predictor.pth`), without torch.

        The second kind adds `base_acc`, the mean accuracy that it was centred on. `CheckpointError` where the file
        holds no such predictor; nothing in it is executed.
        """
        state = read_checkpoint(Path(path), use_torch=False).tensors
        base = state.pop("base_acc", None)
        prefixes = sorted({name.rpartition(".")[0] for name in state}, key=_layer_number)
        if not prefixes or any(f"{prefix}.weight" not in state for prefix in prefixes):
            raise CheckpointError(f"{path} holds no accuracy predictor: its tensors are {sorted(state)[:8]}")
        weights = [np.asarray(state[f"{prefix}.weight"], np.float32) for prefix in prefixes]
        biases = [
            np.asarray(state.get(f"{prefix}.bias", np.zeros(len(weight))), np.float32)
            for prefix, weight in zip(prefixes, weights, strict=True)
        ]
        if base is not None:
            biases[-1] = biases[-1] + np.asarray(base, np.float32).reshape(1)
        return cls(weights, biases)


def _described(space: DesignSpace) -> tuple[str, dict[str, Any]]:
    """Return a space's name and options as they are read from JSON."""
    return space.name, json.loads(json.dumps(dict(space.options)))


def _same_columns(space: DesignSpace, name: str, options: Mapping[str, Any]) -> bool:
    """Whether subnets of `space` are subnets of the other one as well, with the same one-hot features."""
    from fleetnas.supernet_export.spaces.registry import make_space

    other = make_space(name, options)
    genomes = np.concatenate([space.smallest(), space.largest(), space.sample(_COMPARED, np.random.default_rng(0))])
    try:
        there = other.encode(space.decode(genomes))
    except ArchitectureError:
        return False
    return np.array_equal(other.one_hot(there), space.one_hot(genomes))


def _space_in(value: Any) -> tuple[str, dict[str, Any]]:
    name, options = value
    if not isinstance(name, str) or not isinstance(options, dict):
        raise TypeError("it names no design space")
    return name, options


def _layer_number(prefix: str) -> int:
    """Return the layer number: `0`, `2`, ... of a Sequential, or the number in `layers.1.0`."""
    numbers = [part for part in prefix.split(".") if part.isdigit()]
    if not numbers:
        raise CheckpointError(f"an accuracy predictor's layers are numbered; found {prefix!r}")
    return int(numbers[0])
