"""Methods of predicting latency on a device setting from a few measurements of it, behind one interface.

`bayesian` is the product's predictor; `hardware` moves its prior by hardware parameters. The others are the baselines
of the papers: `fine-tuned` (arXiv 2101.00732), `block-table` (ProxylessNAS; OFA), `rescaled-table` and `macs`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.device_fit import DeviceFits, fit_devices
from fleetnas.coordinator.predictors.evaluation.baselines import BlockTable, MacsLine, RescaledTable
from fleetnas.coordinator.predictors.evaluation.dataset import LatencyData
from fleetnas.coordinator.predictors.evaluation.fine_tuned import FineTunedNetwork
from fleetnas.coordinator.predictors.hardware_transfer import HardwareTransfer, Parameters
from fleetnas.coordinator.predictors.learned_prior import prior_of_fits
from fleetnas.coordinator.predictors.metrics import spearman
from fleetnas.coordinator.predictors.prior import Floats, Prior
from fleetnas.coordinator.records.method_names import MethodName
from fleetnas.fleet_protocol.errors import UsageError

#: Candidates from which the predictor chooses its own measurements.
_POOL = 1000

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class NewSetting:
    """A device setting that is treated as new: its own family teaches nothing."""

    data: LatencyData
    name: str
    pool: Rows
    """Architectures that may be measured, and that the other families were measured on."""
    seed: int = 0

    @property
    def latency_ms(self) -> Floats:
        """Its measured latencies, (n,)."""
        return self.data.latency_ms[self.name]

    @property
    def family(self) -> str:
        """The device that it is a setting of."""
        return self.data.families[self.name]

    def others(self) -> dict[str, Floats]:
        """Latencies of all settings of other families, ms, (n,) each."""
        return {name: ms for name, ms in self.data.latency_ms.items() if self.data.families[name] != self.family}

    def best_ranking(self, rows: Rows) -> str:
        """Name the setting of another family that ranks the architectures of `rows` most alike."""
        others, measured = self.others(), self.latency_ms[rows]
        return max(others, key=lambda name: spearman(others[name][rows], measured) or 0.0)


class Method(Protocol):
    """Predicts the latencies of one new device setting."""

    @property
    def least_samples(self) -> int:
        """Number of measurements that it needs."""

    def predict(self, rows: Rows, held_out: Rows) -> tuple[Floats, Floats | None]:
        """Predict `held_out` (m,) from measurements of `rows` (k,).

        Returns: mean and standard deviation, ms, (m,) each; None for a method without one.
        """


#: Makes the method for one new setting.
MethodFactory = Callable[[NewSetting], Method]


class PriorMethod:
    """The Bayesian predictor under a prior; it can choose its own measurements."""

    least_samples = 0

    def __init__(self, setting: NewSetting, prior: Prior) -> None:
        self._setting, self._prior = setting, prior

    def suggest(self, pool: Rows, count: int, rng: np.random.Generator) -> Rows:
        """Choose `count` architectures of the pool by active learning."""
        features = self._setting.data.features
        candidates = rng.choice(pool, min(_POOL, len(pool)), replace=False)
        chosen: Rows = candidates[BayesianPredictor(self._prior).suggest(features[candidates], count, rng)]
        return chosen

    def predict(self, rows: Rows, held_out: Rows) -> tuple[Floats, Floats | None]:
        """Predict from the posterior, with the standard deviation of a new architecture's measurement."""
        features = self._setting.data.features
        predictor = BayesianPredictor(self._prior)
        if len(rows):
            predictor.update(features[rows], self._setting.latency_ms[rows])
        return predictor.predict(features[held_out], include_noise=True)


class FitsOfOthers:
    """Fits of all settings, each made once; a new setting gets those of the other families."""

    def __init__(self) -> None:
        self._known: tuple[LatencyData, Rows, DeviceFits] | None = None

    def __call__(self, setting: NewSetting) -> DeviceFits:
        """Return the fits of the families that the setting is not of, on the architectures of its pool."""
        data, pool = setting.data, setting.pool
        if self._known is None or self._known[0] is not data or not np.array_equal(self._known[1], pool):
            self._known = data, pool, fit_devices(data.devices(pool), data.groups)
        fits = self._known[2]
        return fits.subset([place for place, family in enumerate(fits.families) if family != setting.family])


class LearnedPriors:
    """Makes the Bayesian predictor with a prior learned from the other families, once per family."""

    def __init__(self) -> None:
        self._fits = FitsOfOthers()
        self._priors: dict[str, Prior] = {}

    def __call__(self, setting: NewSetting) -> PriorMethod:
        """Make the method for one setting."""
        if setting.family not in self._priors:
            self._priors[setting.family] = prior_of_fits(self._fits(setting))
        return PriorMethod(setting, self._priors[setting.family])


class HardwarePriors:
    """Makes the Bayesian predictor with a prior moved towards settings of similar hardware parameters."""

    def __init__(self, parameters: Mapping[str, Parameters]) -> None:
        """`parameters` of every setting of the data, by its name."""
        self._parameters = parameters
        self._fits = FitsOfOthers()

    def __call__(self, setting: NewSetting) -> PriorMethod:
        """Make the method for one setting; `UsageError` where parameters are missing."""
        transfer = HardwareTransfer(self._fits(setting), self._parameters)
        if setting.name not in self._parameters:
            raise UsageError(f"hardware parameters are missing for {setting.name}; give them or leave it out")
        return PriorMethod(setting, transfer.prior(self._parameters[setting.name]))


class FineTunedMethod:
    """A network of another device, fine-tuned: of the device that ranks the measured architectures most alike."""

    least_samples = 2

    def __init__(self, setting: NewSetting) -> None:
        self._setting = setting
        self._rng = np.random.default_rng(setting.seed)
        self._networks: dict[str, FineTunedNetwork] = {}

    def predict(self, rows: Rows, held_out: Rows) -> tuple[Floats, Floats | None]:
        """Predict with a fine-tuned copy of the base device's network."""
        setting, features = self._setting, self._setting.data.features
        base = setting.best_ranking(rows)
        if base not in self._networks:
            pool = setting.pool
            self._networks[base] = FineTunedNetwork(features[pool], setting.others()[base][pool], self._rng)
        network = copy.deepcopy(self._networks[base])
        network.fine_tune(features[rows], setting.latency_ms[rows], self._rng)
        return network.predict(features[held_out]), None


class BlockTableMethod:
    """A block latency table fitted to the measurements alone."""

    least_samples = 2

    def __init__(self, setting: NewSetting) -> None:
        """`UsageError` where the data does not name a design space."""
        space, genomes = setting.data.space, setting.data.genomes
        if space is None or genomes is None:
            raise UsageError("a block table needs data of a known design space; choose another --method")
        self._setting, self._space, self._genomes = setting, space, genomes

    def predict(self, rows: Rows, held_out: Rows) -> tuple[Floats, Floats | None]:
        """Predict by the least-norm table that explains the measurements."""
        table = BlockTable(self._space, self._genomes[rows], self._setting.latency_ms[rows])
        return table.predict(self._genomes[held_out]), None


class RescaledTableMethod:
    """Another device's latencies times one factor: of the device that ranks the measured architectures most alike."""

    least_samples = 2

    def __init__(self, setting: NewSetting) -> None:
        self._setting = setting

    def predict(self, rows: Rows, held_out: Rows) -> tuple[Floats, Floats | None]:
        """Predict by the other device's measurements of the same architectures."""
        foreign = self._setting.others()[self._setting.best_ranking(rows)]
        return RescaledTable(foreign[rows], self._setting.latency_ms[rows]).predict(foreign[held_out]), None


class MacsMethod:
    """A straight line in multiply-accumulates."""

    least_samples = 2

    def __init__(self, setting: NewSetting) -> None:
        """`UsageError` where the data does not name a design space."""
        if setting.data.macs is None:
            raise UsageError("a line in MACs needs data of a known design space; choose another --method")
        self._setting, self._macs = setting, setting.data.macs

    def predict(self, rows: Rows, held_out: Rows) -> tuple[Floats, Floats | None]:
        """Predict by least squares."""
        return MacsLine(self._macs[rows], self._setting.latency_ms[rows]).predict(self._macs[held_out]), None


def method_factory(name: MethodName, parameters: Mapping[str, Parameters] | None = None) -> MethodFactory:
    """Return the factory of a method by its name.

    Args:
        name: the method.
        parameters: hardware parameters per setting, for `hardware`.

    Raises:
        UsageError: `hardware` without parameters.
    """
    if name == "hardware":
        if parameters is None:
            raise UsageError("--method hardware needs the settings' hardware parameters; give --parameters FILE")
        return HardwarePriors(parameters)
    factories: dict[str, MethodFactory] = {
        "fine-tuned": FineTunedMethod,
        "block-table": BlockTableMethod,
        "rescaled-table": RescaledTableMethod,
        "macs": MacsMethod,
    }
    return factories[name] if name in factories else LearnedPriors()
