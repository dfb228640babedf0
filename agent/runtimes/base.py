"""Define the interface of runtimes: a library, or a program, that loads models and times them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fleetnas.agent.runtimes.model_file import ModelFile
from fleetnas.agent.runtimes.timing import Timing, measure
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError
from fleetnas.fleet_protocol.layer_times import LayerTime
from fleetnas.fleet_protocol.messages import Conditions, MeasurementProtocol, RuntimeSetting

#: Seed of the inputs that models are measured with.
INPUT_SEED = 20_200_427

OnBlock = Callable[[float], None]


class ProviderFallbackError(RuntimeUnavailableError):
    """The runtime would run on another execution provider than the chosen one."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input of a model, in the order and layout of its runtime."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class TimedModel(ABC):
    """A model that is ready to be timed, in this process or on a device that this host drives."""

    #: The execution provider or delegate that is really active, as the runtime calls it.
    provider: str

    @abstractmethod
    def time(self, protocol: MeasurementProtocol, on_block: OnBlock = lambda fraction: None) -> Timing:
        """Time the model by `protocol`; `on_block` is called between blocks with the fraction done."""

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each timed input, by name; empty if the program that runs the model does not report it."""
        return {}

    def close(self) -> None:  # noqa: B027 - most models hold nothing elsewhere
        """Free resources outside of this process."""


class LoadedModel(TimedModel):
    """A model that runs in this process."""

    inputs: tuple[TensorSpec, ...]

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each input, by name."""
        return {spec.name: spec.shape for spec in self.inputs}

    @abstractmethod
    def bind(self, tensors: Sequence[NDArray[Any]]) -> Callable[[], object]:
        """Return a callable that runs one inference on these tensors, which are in the order of `inputs`.

        The callable is timed: it does only what an application has to do for each inference.
        """

    @abstractmethod
    def outputs(self) -> list[NDArray[Any]]:
        """Return the outputs of the last run of the callable from `bind`."""

    def time(self, protocol: MeasurementProtocol, on_block: OnBlock = lambda fraction: None) -> Timing:
        """Time the model on random inputs by `protocol`."""
        return measure(self.bind(random_tensors(self.inputs)), protocol, on_block=on_block)


class Runtime(ABC):
    """A library, or a program, that runs models."""

    #: As in `RuntimeSetting.runtime`.
    name: ClassVar[str]

    @abstractmethod
    def version(self) -> str:
        """Return the version of the library or program; `RuntimeUnavailableError` if it is missing."""

    @abstractmethod
    def providers(self) -> tuple[str, ...]:
        """Return the values of `RuntimeSetting.provider` that are offered here."""

    @abstractmethod
    def load(self, model: bytes, setting: RuntimeSetting, own: ModelFile | None = None) -> TimedModel:
        """Make `model` ready to run with `setting`; `own` is the file that it was read from, if it is a user's own.

        Raises `ProviderFallbackError` if another provider than the chosen one would run it,
        `RuntimeUnavailableError` if the model or the setting is not accepted, `UsageError` if an own model's inputs
        have open sides.
        """

    def profile(self, model: bytes, setting: RuntimeSetting, own: ModelFile | None = None) -> tuple[LayerTime, ...]:
        """Return the time of each layer by the runtime's own profiler, in a session of its own.

        Empty where the runtime has no profiler that can be reached. Raises as `load` does.
        """
        return ()

    def device(self) -> DeviceProfile | None:
        """Return the profile of the device that runs the models; None if that is this host."""
        return None

    def conditions(self) -> Conditions | None:
        """Return the state of the device that runs the models; None if that is this host."""
        return None


def random_tensors(specs: Sequence[TensorSpec], seed: int = INPUT_SEED) -> list[NDArray[Any]]:
    """Return standard normal inputs, the same for the same specs: zeros would be faster than real images."""
    rng = np.random.default_rng(seed)
    tensors = []
    for spec in specs:
        values = rng.standard_normal(spec.shape)
        if np.issubdtype(spec.dtype, np.integer):
            limits = np.iinfo(spec.dtype)
            values = np.clip(np.round(values * 32), limits.min, limits.max)
        tensors.append(values.astype(spec.dtype))
    return tensors
