"""One suite that every runtime passes, on the library itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from rigs import waiting
from rigs.supernets import random_bundle

from fleetnas.agent.runtimes.base import ProviderFallbackError, Runtime, random_tensors
from fleetnas.agent.runtimes.registry import make_runtime
from fleetnas.agent.runtimes.settings import IN_PROCESS
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.interpreters.litert import import_litert
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("digits")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return random_bundle(tmp_path_factory.mktemp("runtimes") / "digits.supernet", SPACE)


@pytest.fixture(params=IN_PROCESS)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    chosen = make_runtime(request.param)
    try:
        chosen.version()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    return chosen


def model_for(runtime: Runtime, bundle: SupernetBundle) -> bytes:
    return build_model(bundle, SPACE.decode(SPACE.smallest())[0], None, setting_for(runtime))


def setting_for(runtime: Runtime, **fields: object) -> RuntimeSetting:
    return RuntimeSetting.model_validate({"runtime": runtime.name, **fields})


def channels_last(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One image in the layout of an input of this shape."""
    return image if image.shape == shape else np.ascontiguousarray(image.transpose(0, 2, 3, 1))


def test_every_runtime_computes_the_same_subnet(bundle: SupernetBundle) -> None:
    side = SPACE.decode(SPACE.smallest())[0].r
    image = np.random.default_rng(3).standard_normal((1, 1, side, side)).astype(np.float32)
    logits = {}
    for name in IN_PROCESS:
        runtime = make_runtime(name)
        loaded = runtime.load(model_for(runtime, bundle), setting_for(runtime))
        loaded.bind([channels_last(image, loaded.inputs[0].shape)])()
        logits[name] = loaded.outputs()[0]
    scale = np.abs(logits["onnxruntime"]).max()
    assert np.abs(logits["litert"] - logits["onnxruntime"]).max() < 1e-4 * scale


def test_inputs_are_the_same_every_time_and_not_constant(runtime: Runtime, bundle: SupernetBundle) -> None:
    loaded = runtime.load(model_for(runtime, bundle), setting_for(runtime))
    first, again = random_tensors(loaded.inputs), random_tensors(loaded.inputs)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert [tensor.shape for tensor in first] == [spec.shape for spec in loaded.inputs]
    assert 0.8 < first[0].std() < 1.2


def test_int8_models_run_and_are_smaller(runtime: Runtime, bundle: SupernetBundle) -> None:
    int8 = setting_for(runtime, precision="int8")
    model = build_model(bundle, SPACE.decode(SPACE.largest())[0], None, int8)
    assert len(model) < 0.4 * len(build_model(bundle, SPACE.decode(SPACE.largest())[0], None, setting_for(runtime)))
    loaded = runtime.load(model, int8)
    loaded.bind(random_tensors(loaded.inputs))()
    assert loaded.outputs()[0].shape == (1, 10)
    assert np.ptp(loaded.outputs()[0]) > 0


def test_threads_do_not_change_the_result(runtime: Runtime, bundle: SupernetBundle) -> None:
    results = []
    for threads in (1, 2):
        loaded = runtime.load(model_for(runtime, bundle), setting_for(runtime, threads=threads))
        loaded.bind(random_tensors(loaded.inputs))()
        results.append(loaded.outputs()[0])
    assert np.allclose(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_the_active_provider_is_named(runtime: Runtime, bundle: SupernetBundle) -> None:
    provider = runtime.load(model_for(runtime, bundle), setting_for(runtime)).provider
    assert provider in {"CPUExecutionProvider", "XNNPACK", "builtin"}


def test_a_provider_that_is_not_there_is_an_error_and_never_the_processor(
    runtime: Runtime, bundle: SupernetBundle
) -> None:
    with pytest.raises(ProviderFallbackError, match="no-such-chip"):
        runtime.load(model_for(runtime, bundle), setting_for(runtime, provider="no-such-chip"))


def test_rubbish_instead_of_a_model_is_refused(runtime: Runtime) -> None:
    with pytest.raises(RuntimeUnavailableError, match="does not load the model"):
        runtime.load(b"this is no model" * 20, setting_for(runtime))


def test_cuda_without_a_card_is_a_fallback_error(bundle: SupernetBundle) -> None:
    runtime = make_runtime("onnxruntime")
    if "cuda" in runtime.providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ProviderFallbackError, match="offers cpu"):
        runtime.load(model_for(runtime, bundle), setting_for(runtime, provider="cuda"))


def test_litert_tells_its_delegate_from_its_own_kernels(bundle: SupernetBundle) -> None:
    runtime = make_runtime("litert")
    model = model_for(runtime, bundle)
    assert runtime.load(model, setting_for(runtime, provider="builtin")).provider == "builtin"
    assert runtime.load(model, setting_for(runtime, provider="xnnpack")).provider == "XNNPACK"


def test_an_unknown_runtime_is_named() -> None:
    with pytest.raises(RuntimeUnavailableError, match="'abacus'"):
        make_runtime("abacus")


def test_onnxruntime_is_imported_with_telemetry_off_and_writes_nothing_home(tmp_path: Path) -> None:
    program = (
        "from fleetnas.agent.runtimes.registry import make_runtime; import os\n"
        "make_runtime('onnxruntime').version(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = waiting.run([sys.executable, "-c", program], env=environment)
    assert done.stdout.strip() == "1"
    assert list(tmp_path.iterdir()) == []


def test_telemetry_is_off_before_the_library_is_read(tmp_path: Path) -> None:
    """A library that says what it found when it was imported stands in for onnxruntime."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os, sys\nsys.stderr.write('imported with ' + os.environ.get('ORT_DISABLE_TELEMETRY', 'telemetry'))\n"
        "__version__ = '0'\ndef get_available_providers(): return ['CPUExecutionProvider']\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    program = "from fleetnas.agent.runtimes.registry import make_runtime; make_runtime('onnxruntime').providers()"
    done = waiting.run([sys.executable, "-c", program], env=environment)
    assert done.stderr == "imported with 1"


def test_litert_runs_its_classic_interpreter(bundle: SupernetBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = import_litert()
    invoked: list[object] = []

    class Interpreter(module.Interpreter):  # type: ignore[misc]
        def invoke(self) -> None:
            invoked.append(self)
            super().invoke()

    monkeypatch.setattr(module, "Interpreter", Interpreter)
    runtime = make_runtime("litert")
    loaded = runtime.load(model_for(runtime, bundle), setting_for(runtime))
    loaded.bind(random_tensors(loaded.inputs))()
    assert len(invoked) == 1
    assert not [name for name in sys.modules if "compiled_model" in name]
