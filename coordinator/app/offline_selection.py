"""Choose the winners of an offline search by selection images, among the best candidates within each target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.app.images import ImageProgress, checked_images, checked_selection_images
from fleetnas.coordinator.app.request import ImageFolders
from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
from fleetnas.coordinator.search.engine import search
from fleetnas.coordinator.search.latency import MeasuredLatency
from fleetnas.coordinator.search.offline import OfflineOutcome, load_accuracy, read_latency
from fleetnas.coordinator.search.problem import Problem, Winner
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.answers import ClassAnswers

Genome = NDArray[np.int16]


class OfflineSelection:
    """The bundle and the images that choose; every image is read before the search."""

    def __init__(self, supernet: Path, images: ImageFolders, rerank: int, progress: ImageProgress) -> None:
        """Open the bundle that `--accuracy` names, and its images.

        Raises:
            UsageError: it is no bundle, there are no selection images, or some cannot be read.
            BundleError: the bundle is damaged.
        """
        if supernet.suffix != ".supernet":
            raise UsageError("--rerank builds the candidates' files from a bundle; give it as --accuracy FILE.supernet")
        bundle = SupernetBundle.open(supernet)
        opened = checked_images(bundle, images, progress)
        chosen_by = checked_selection_images(bundle, images, opened, rerank, progress)
        self._models, self._rerank = BundleWinnerBuilder(bundle, opened[0], None, chosen_by), rerank

    def choose(self, outcome: OfflineOutcome, progress: Callable[[int, int], None]) -> OfflineOutcome:
        """Return the outcome with the winners that answer most selection images right; fp32 files, in onnxruntime.

        `progress` is given the candidates evaluated and the candidates in all. No looser target gets a winner of
        lower selection accuracy than a tighter one.
        """
        targets_ms = [winner.target_ms for winner in outcome.result.winners]
        problem, listed = _candidates(outcome, self._rerank)
        wanted = {genome.tobytes(): genome for candidates in listed.values() for genome in candidates}
        answers: dict[bytes, ClassAnswers] = {}
        for done, (key, genome) in enumerate(wanted.items(), 1):
            answers[key] = self._evaluate(outcome, genome)
            progress(done, len(wanted))
        winners: dict[float, Winner] = {}
        best: list[Genome] = []
        for target_ms, candidates in sorted(listed.items()):
            # The first of equally accurate ones is the best predicted.
            best = [max([*candidates, *best], key=lambda genome: answers[genome.tobytes()].accuracy)]
            winners[target_ms] = _winner(problem, target_ms, best[0])
        chosen = tuple(winners[target_ms] for target_ms in targets_ms)
        selection = tuple(answers[winner.genome.tobytes()] for winner in chosen)
        return replace(outcome, result=replace(outcome.result, winners=chosen), selection=selection)

    def _evaluate(self, outcome: OfflineOutcome, genome: Genome) -> ClassAnswers:
        (architecture,) = outcome.space.decode(genome[None])
        found = self._models.answers(self._models.calibrate(architecture, RuntimeSetting()), "selection")
        assert found is not None
        return found


def _candidates(outcome: OfflineOutcome, most: int) -> tuple[Problem, dict[float, list[Genome]]]:
    """Return the problem, and up to `most` subnets within each target, the best predicted first.

    The search is run again and again, each time without the subnets that it found before.
    """
    request, space = outcome.request, outcome.space
    accuracy, latency = load_accuracy(request.accuracy, space), read_latency(request.latency_table, space)
    targets_ms = sorted({winner.target_ms for winner in outcome.result.winners})
    found = {winner.genome.tobytes(): winner.genome for winner in outcome.result.winners}
    for turn in range(1, most):
        ruled_out = np.stack(list(found.values()))
        without = MeasuredLatency(latency, ruled_out, np.full(len(ruled_out), np.inf))
        result = search(
            Problem(space, accuracy, without, request.bounds),
            targets_ms,
            rng=np.random.default_rng([request.seed, turn]),
            strategy=request.strategy,
            engine=request.engine,
            leave_out_infeasible=True,
        )
        new = {winner.genome.tobytes(): winner.genome for winner in result.winners}
        if not new.keys() - found.keys():
            break
        found |= new
    problem = Problem(space, accuracy, latency, request.bounds)
    pool = np.stack([*found.values(), *outcome.result.front_genomes])
    pool = np.unique(pool, axis=0)
    predicted_ms, top1 = problem.latency_ms(pool), problem.top1(pool)
    order = np.argsort(-top1, kind="stable")
    return problem, {
        target_ms: [pool[row] for row in order if predicted_ms[row] <= target_ms][:most] for target_ms in targets_ms
    }


def _winner(problem: Problem, target_ms: float, genome: Genome) -> Winner:
    (architecture,) = problem.space.decode(genome[None])
    top1, predicted_ms = float(problem.top1(genome[None])[0]), float(problem.latency_ms(genome[None])[0])
    return Winner(target_ms, genome, architecture, top1, predicted_ms)
