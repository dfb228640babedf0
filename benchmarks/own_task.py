"""The whole road of docs/own-task.md on photographs of textures, with the commands of that page as they are written.

Trains, evaluates, fits, searches three targets on each of two settings of this machine, fine-tunes every winner and
measures it again; then what the page's reader asks: how accurate are the largest subnet, and the smallest after
fine-tuning, what does int8 cost, and what do three winners cost that are trained from scratch instead? Draws the
fronts before and after fine-tuning. Needs torch, and scikit-image where `--data` names no folder of images.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figures, parser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from rigs.page_commands import command_blocks, own_environment, run_block  # noqa: E402

PAGE = ROOT / "docs" / "own-task.md"
EPOCHS = 10
ONNXRUNTIME = "onnxruntime_cpu_1t_fp32"
PARTS = ("val", "test")


@dataclass
class Usage:
    """What a command took."""

    wall_s: float
    cpu_s: float


class Road:
    """A folder in which the page's commands run."""

    def __init__(self, folder: Path, *, quiet: bool) -> None:
        self.folder, self.quiet = folder, quiet
        self.log = folder / "road.log"
        self.environment = own_environment(folder)
        self.used: dict[str, Usage] = {}

    def run(self, name: str, block: str) -> Usage:
        """Run a block of commands, and note its time and that of its processes under `name`."""
        self.report(f"{name} ...")
        before, started = _children_cpu_s(), time.monotonic()
        try:
            run_block(block, self.folder, self.environment, self.log)
        except subprocess.CalledProcessError:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise SystemExit(f"{name} failed; the end of {self.log}:\n{tail}") from None
        usage = Usage(time.monotonic() - started, _children_cpu_s() - before)
        self.used[name] = usage
        self.report(f"{name}: {usage.wall_s:.0f} s, {usage.cpu_s:.0f} s of processor time")
        return usage

    def ask(self, *arguments: str) -> Any:
        """Return what a command prints with `--json`."""
        found = subprocess.run(
            [Path(sys.executable).parent / "fleetnas", *arguments, "--json"],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if found.returncode:
            raise SystemExit(f"fleetnas {' '.join(arguments)} failed:\n{found.stderr}")
        return json.loads(found.stdout)

    def report(self, line: str) -> None:
        """Print a line of progress."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def accuracy(self, bundle: str, architecture: str, part: str, runtime: str, precision: str) -> float:
        """Evaluate one subnet on a part of the images, in percent."""
        found = self.ask(
            "evaluate", bundle, architecture, "--images", f"data/{part}", "--calibration-images", "data/train",
            "--runtime", runtime, "--precision", precision,
        )  # fmt: skip
        return 100 * float(found["accuracy"])

    def cards(self, folder: str) -> dict[str, list[dict[str, Any]]]:
        """Return the winners' cards below a folder by runtime label, ascending by target."""
        found: dict[str, list[dict[str, Any]]] = {}
        for path in sorted((self.folder / folder).glob("*/*/*ms.json")):
            card = json.loads(path.read_text())
            found.setdefault(card["runtime"], []).append(card | {"path": str(path.relative_to(self.folder))})
        return {label: sorted(cards, key=lambda card: float(card["target_ms"])) for label, cards in found.items()}


def main() -> int:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, help="folder with train, val and test (default: textures are made)")
    arguments.add_argument("--work", type=Path, default=Path("build/own-task"), help="where everything goes")
    arguments.add_argument("--without-scratch", action="store_true", help="do not train winners from scratch")
    chosen = arguments.parse_args()
    folder = chosen.work.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _provide_images(chosen.data, folder / "data")
    road, figures = Road(folder, quiet=chosen.json), Figures()
    train, learn, search, tune, last = command_blocks(PAGE)
    road.run("train", train)
    road.run("evaluate and fit", learn)
    road.run("search", search)
    shutil.copytree(folder / "run/results", folder / "run/searched")
    road.run("fine-tune and measure", tune)
    road.run("evaluate the smallest", last)
    road.run(
        "fine-tune the smallest",
        "fleetnas finetune smallest --bundle run/supernet.supernet --images data/train --val data/val --epochs 5 "
        "-o run/smallest.supernet",
    )
    figures.add("road_minutes", sum(usage.wall_s for usage in road.used.values()) / 60, "<= 45")
    _targets(road, figures)
    _accuracies(road, figures)
    _predictor(road, figures)
    _draw(road, folder / "fronts.png")
    if not chosen.without_scratch:
        _scratch(road, figures)
    if not chosen.json:
        print(f"everything is in {folder}; the fronts before and after fine-tuning: {folder / 'fronts.png'}")
    return figures.report(as_json=chosen.json)


def _provide_images(given: Path | None, folder: Path) -> None:
    if given is not None:
        folder.symlink_to(given.absolute(), target_is_directory=True)
        return
    subprocess.run([sys.executable, ROOT / "docs/examples/make_textures.py", folder], check=True)


def _targets(road: Road, figures: Figures) -> None:
    """Count the targets that the search met, and the winners that met theirs again after fine-tuning."""
    results = json.loads((road.folder / "run/searched/results.json").read_text())
    asked, met = results["targets_asked"], results["targets_met"]
    again = sum(card.get("replaces") is not None for cards in road.cards("run/results").values() for card in cards)
    figures.add("targets_asked", asked)
    figures.add("share_of_targets_met", met / asked, ">= 1")
    figures.add("share_of_winners_that_met_their_target_again", again / max(met, 1), ">= 1")


def _accuracies(road: Road, figures: Figures) -> None:
    bundle, tuned = "run/supernet.supernet", "run/smallest.supernet"
    for part, bars in (("val", (">= 92", ">= 82")), ("test", ("", ""))):
        figures.add(f"largest_{part}_percent", road.accuracy(bundle, "largest", part, "onnxruntime", "fp32"), bars[0])
        figures.add(f"smallest_{part}_percent", road.accuracy(bundle, "smallest", part, "onnxruntime", "fp32"))
        exact = road.accuracy(tuned, "smallest", part, "onnxruntime", "fp32")
        figures.add(f"smallest_fine_tuned_{part}_percent", exact, bars[1])
    losses = []
    for name, chosen in (("largest", bundle), ("smallest", tuned)):
        exact = road.accuracy(chosen, name, "val", "onnxruntime", "fp32")
        losses += [exact - road.accuracy(chosen, name, "val", runtime, "int8") for runtime in ("onnxruntime", "litert")]
    figures.add("int8_loss_points_worst", max(losses), "<= 1.5")


def _predictor(road: Road, figures: Figures) -> None:
    from fleetnas.supernet_export.bundle import SupernetBundle

    predictor = SupernetBundle.open(road.folder / "run/supernet.supernet").accuracy_predictor()
    assert predictor is not None
    assert predictor.held_out is not None
    found, ceiling = predictor.held_out.spearman, predictor.held_out.ceiling
    figures.add("predictor_rank_correlation", found)
    figures.add("predictor_ceiling_by_noise", ceiling if ceiling is not None else 1.0)
    # Either is enough: 0.85, or 0.95 of what the evaluation's own noise leaves.
    figures.add("predictor_rank_correlation_over_bar", found / min(0.85, 0.95 * (ceiling or 1.0)), ">= 1")


def _scratch(road: Road, figures: Figures) -> None:
    """Train the winners in onnxruntime from random weights, for as many epochs as the supernet was."""
    winners = road.cards("run/results")[ONNXRUNTIME]
    scratch, ours = [], []
    before = sum(road.used[name].cpu_s for name in ("train", "evaluate and fit"))
    tuning = _share_of_tuning(road, winners)
    cpu_s = 0.0
    for number, card in enumerate(winners):
        begin, out = f"run/random-{number}.supernet", f"run/scratch-{number}.supernet"
        _write_random(road.folder / card["path"], road.folder / "run/supernet.supernet", road.folder / begin)
        cpu_s += road.run(
            f"train winner {number + 1} of {len(winners)} from scratch",
            f"fleetnas finetune smallest --bundle {begin} --images data/train --val data/val --epochs {EPOCHS} "
            f"--learning-rate 0.003 --teacher none -o {out}",
        ).cpu_s
        tuned = card["path"].removesuffix(".json") + ".supernet"
        for kept, bundle in ((ours, tuned), (scratch, out)):
            kept.append(
                {part: road.accuracy(bundle, "smallest", part, "onnxruntime", "fp32") for part in ("val", "test")}
            )
    figures.add("cpu_of_supernet_and_three_winners_over_scratch", (before + tuning) / cpu_s, "<= 0.5")
    figures.add("cpu_of_training_and_fine_tuning_alone_over_scratch", (road.used["train"].cpu_s + tuning) / cpu_s)
    for part, bar in (("val", ">= 0"), ("test", "")):
        gain = statistics.fmean(one[part] - other[part] for one, other in zip(ours, scratch, strict=True))
        figures.add(f"mean_accuracy_{part}_less_scratch_points", gain, bar)


def _share_of_tuning(road: Road, winners: list[dict[str, Any]]) -> float:
    """Processor time of fine-tuning these winners: their share of all that were, which were measured as well."""
    every = sum(len(cards) for cards in road.cards("run/results").values())
    return road.used["fine-tune and measure"].cpu_s * len(winners) / every


def _write_random(card: Path, bundle: Path, path: Path) -> None:
    """Write a winner's bundle with random weights, drawn as at the start of a supernet's training."""
    from fleetnas.fleet_protocol.architecture import Architecture
    from fleetnas.supernet_export.bundle import SupernetBundle, write_bundle
    from fleetnas.supernet_export.cutting import cut_bundle

    architecture = Architecture.model_validate(json.loads(card.read_text())["architecture"])
    cut_bundle(SupernetBundle.open(bundle), architecture, path)
    cut = SupernetBundle.open(path)
    rng = np.random.default_rng(0)
    tensors = {}
    for name in cut.names:
        shape = cut.tensor(name).shape
        if name.endswith((".running_var", "bn.weight")):
            tensors[name] = np.ones(shape, np.float32)
        elif len(shape) == 4:
            fan_out = shape[0] * shape[2] * shape[3] / (shape[0] if shape[1] == 1 else 1)
            tensors[name] = rng.normal(0, np.sqrt(2 / fan_out), shape).astype(np.float32)
        elif len(shape) == 2:
            tensors[name] = rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(shape[1]))
        else:
            tensors[name] = np.zeros(shape, np.float32)
    write_bundle(path, cut.manifest, tensors)


def _draw(road: Road, path: Path) -> None:
    """Draw accuracy on test over latency, before and after fine-tuning, one panel per setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    before, after = road.cards("run/searched"), road.cards("run/results")
    figure, panels = pyplot.subplots(1, len(before), figsize=(5 * len(before), 4), sharey=True, squeeze=False)
    for panel, (label, cards) in zip(panels[0], before.items(), strict=True):
        for name, found, style in (("as searched", cards, "o--"), ("fine-tuned", after[label], "o-")):
            panel.plot(
                [card["verified_ms"] for card in found],
                [100 * card["accuracy"] for card in found],
                style,
                label=name,
            )
        panel.set(title=label, xlabel="measured latency, ms")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("top-1 on test images, %")
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
