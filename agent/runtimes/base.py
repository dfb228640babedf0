"""What a runtime is to the agent."""

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
from fleetnas.fleet_protocol.messages import Conditions, MeasurementProtocol, RuntimeSetting

#: Seed of the inputs that models are measured with.
INPUT_SEED = 20_200_427

OnBlock = Callable[[float], None]


class ProviderFallbackError(RuntimeUnavailableError):
    """The runtime would run on another execution provider than the one asked for."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input of a model, in the order and layout of its runtime."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class TimedModel(ABC):
    """A model that is ready to be timed, here or on a device that this host drives."""

    #: The execution provider or delegate that is really active, as the runtime calls it.
    provider: str

    @abstractmethod
    def time(self, protocol: MeasurementProtocol, on_block: OnBlock = lambda fraction: None) -> Timing:
        """Its latency by `protocol`; `on_block` is told the fraction done between blocks."""

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each input that is timed, by name; empty where what runs the model does not tell."""
        return {}

    def close(self) -> None:  # noqa: B027 - most models hold nothing elsewhere
        """Free what it holds elsewhere than in this process."""


class LoadedModel(TimedModel):
    """A model that runs in this process."""

    inputs: tuple[TensorSpec, ...]

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        return {spec.name: spec.shape for spec in self.inputs}

    @abstractmethod
    def bind(self, tensors: Sequence[NDArray[Any]]) -> Callable[[], object]:
        """A callable that runs one inference on these tensors, which are in the order of `inputs`.

        It does only what an application has to do for each inference: it is what is timed.
        """

    @abstractmethod
    def outputs(self) -> list[NDArray[Any]]:
        """The outputs of the last run of the callable from `bind`."""

    def time(self, protocol: MeasurementProtocol, on_block: OnBlock = lambda fraction: None) -> Timing:
        return measure(self.bind(random_tensors(self.inputs)), protocol, on_block=on_block)


class Runtime(ABC):
    """A library, or a program, that runs models."""

    #: As in `RuntimeSetting.runtime`.
    name: ClassVar[str]

    @abstractmethod
    def version(self) -> str:
        """Version of what runs the models; `RuntimeUnavailableError` with what installs it where it is missing."""

    @abstractmethod
    def providers(self) -> tuple[str, ...]:
        """Names for `RuntimeSetting.provider` that are offered here."""

    @abstractmethod
    def load(self, model: bytes, setting: RuntimeSetting, own: ModelFile | None = None) -> TimedModel:
        """Make `model` ready to run as `setting` says; `own` is where it was read from, if it is a user's file.

        `ProviderFallbackError` where another provider than the one asked for would run it,
        `RuntimeUnavailableError` where the model or the setting is not taken, `UsageError` where sides of an own
        model's inputs are left open.
        """

    def device(self) -> DeviceProfile | None:
        """The device that runs the models, where that is not this host."""
        return None

    def conditions(self) -> Conditions | None:
        """The state of the device that runs the models, where that is not this host."""
        return None


def random_tensors(specs: Sequence[TensorSpec], seed: int = INPUT_SEED) -> list[NDArray[Any]]:
    """Standard normal inputs, the same for the same specs: never zeros, which are faster than real images."""
    rng = np.random.default_rng(seed)
    tensors = []
    for spec in specs:
        values = rng.standard_normal(spec.shape)
        if np.issubdtype(spec.dtype, np.integer):
            limits = np.iinfo(spec.dtype)
            values = np.clip(np.round(values * 32), limits.min, limits.max)
        tensors.append(values.astype(spec.dtype))
    return tensors
