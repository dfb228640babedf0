# %% [markdown]
# # A first search, on this machine alone
#
# Export the built-in digits supernet, measure a few of its subnets with onnxruntime, fit a latency predictor, search
# two latency targets, and write the winner's model file. Run it as a script, or cell by cell in an editor that knows
# `# %%`.

# %%
from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

import fleetnas

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "first-search")
folder.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(0)

# %% [markdown]
# ## A bundle holds the supernet, its design space and its accuracy predictor

# %%
bundle = fleetnas.export_digits(folder / "digits.supernet")
print(f"{bundle.space.name}: {bundle.space.size:,} subnets, {bundle.size / 1e6:.1f} MB")

# %% [markdown]
# ## Measure a subnet
#
# `emit_subnet` builds the file that an agent would build, byte for byte. Agents measure more carefully than this
# function: see docs/measuring.md.


# %%
def measure(architecture: fleetnas.Architecture) -> float:
    """Median latency of one subnet, ms."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(fleetnas.emit_subnet(bundle, architecture), options)
    image = np.zeros(session.get_inputs()[0].shape, np.float32)
    times_ms = []
    for _ in range(20):
        begin = time.perf_counter()
        session.run(None, {session.get_inputs()[0].name: image})
        times_ms.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times_ms)


# %% [markdown]
# ## Fit a latency predictor
#
# It begins with a prior that knows what layers cost, and asks for the subnets that teach it most.

# %%
predictor = fleetnas.LatencyPredictor(bundle)
chosen = predictor.suggest(10, rng)
predictor.fit(chosen, [measure(architecture) for architecture in chosen])
error = predictor.held_out_error()
print(f"fitted to {predictor.count} subnets, held-out error {error.mape_percent:.1f} %")

# %% [markdown]
# ## Search offline
#
# The winners are predictions. Nothing that was not measured is called a result.

# %%
mean_ms, deviation_ms = predictor.predict(bundle.space.decode(bundle.space.largest()))
slowest_ms = float(mean_ms[0])
found = fleetnas.search(bundle, predictor.latency_model(margin=1.0), [0.5 * slowest_ms, 0.8 * slowest_ms])
for winner in found.winners:
    print(
        f"target {winner.target_ms:.3f} ms: top-1 {100 * winner.accuracy:.1f} %, predicted {winner.latency_ms:.3f} ms"
    )
fleetnas.plot_fronts(found, folder / "front.png")

# %% [markdown]
# ## Let the tuner decide what to measure
#
# `Tuner` is the search that a fleet runs for each of its devices: it measures its winners again, and a target is met
# only by a measured subnet.

# %%
tuner = fleetnas.Tuner(bundle, [0.8 * slowest_ms], budget=12, initial_design=6)
while not tuner.finished:
    for proposal in tuner.ask(4):
        tuner.tell(proposal, measure(proposal.architecture))
(target,) = tuner.targets
print(f"target {target.target_ms:.3f} ms is {target.status}: verified at {target.verified_ms} ms")

# %% [markdown]
# ## Write the model file

# %%
best = target.architecture or found.winners[0].architecture
(folder / "winner.onnx").write_bytes(fleetnas.emit_subnet(bundle, best))
print(f"written: {folder / 'winner.onnx'}")
