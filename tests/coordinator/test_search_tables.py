"""Block latency tables: the peer's own estimates, and plain words where a table does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from rigs import peer
from rigs.search_problems import NOTE10_RESOLUTIONS, public_problem

from fleetnas.coordinator.records.bounds import Bounds, subnet_costs
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.search.block_table import read_block_table, table_resolutions
from fleetnas.coordinator.search.evolution import EvolutionSettings
from fleetnas.coordinator.search.guided import GuidedSettings
from fleetnas.coordinator.search.offline import (
    OfflineRequest,
    draw_fronts,
    offline_table,
    search_offline,
    write_offline,
)
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError, UsageError
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.registry import make_space


def _space(name: str, **options: object) -> MBConvSpace:
    space = make_space(name, options)
    assert isinstance(space, MBConvSpace)
    return space


def _layers(path: Path) -> dict[str, dict[str, float]]:
    return yaml.load(path.read_text(), Loader=yaml.CSafeLoader)  # type: ignore[no-any-return]


def test_note10_latencies_are_the_peers(public_data: Path) -> None:
    module = peer.import_peer("ofa.tutorial.latency_table")
    folder = public_data / "ofa_mbv3" / "note10_lut"
    space, _, latency = public_problem(public_data)
    theirs = {}
    for resolution in NOTE10_RESOLUTIONS:
        # Their constructor downloads; the file is the same.
        theirs[resolution] = module.LatencyEstimator.__new__(module.LatencyEstimator)
        theirs[resolution].lut = _layers(folder / f"{resolution}_lookup_table.yaml")
    genomes = space.sample(1000, np.random.default_rng(0))
    wanted = [
        theirs[a.r].predict_network_latency_given_spec(
            {"ks": list(a.ks), "e": [int(ratio) for ratio in a.e], "d": list(a.d), "r": [a.r]}
        )
        for a in space.decode(genomes)
    ]
    assert np.abs(latency.predict(genomes) - wanted).max() <= 1e-9


def test_proxylessnas_latencies_are_the_peers(public_data: Path) -> None:
    module = peer.import_peer("ofa.nas.efficiency_predictor.latency_lookup_table")
    networks = peer.import_peer("ofa.imagenet_classification.elastic_nn.networks")
    path = public_data / "proxylessnas" / "mobile_trim.yaml"
    theirs = module.ProxylessNASLatencyTable.__new__(module.ProxylessNASLatencyTable)
    theirs.lut = _layers(path)
    space = _space("ofa-proxyless", width=1.0, resolutions=[224])
    genomes = space.sample(100, np.random.default_rng(0))
    genomes[:, 28:] = 2 * (genomes[:, 28:] > 0)  # the table has expand ratios 3 and 6 only
    net = networks.OFAProxylessNASNets(ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4])
    latency = read_block_table(path, space).predict(genomes)
    for architecture, found in zip(space.decode(genomes), latency, strict=True):
        ks, e = [k or 3 for k in architecture.ks], [int(ratio) or 3 for ratio in architecture.e]
        net.set_active_subnet(ks=ks, e=e, d=list(architecture.d))
        wanted = theirs.predict_network_latency_given_config(net.get_active_net_config(), 224)
        assert found == pytest.approx(wanted, abs=1e-9)


def test_an_expand_ratio_between_two_measured_ones_lies_between_them(public_data: Path) -> None:
    space = _space("ofa-proxyless", width=1.0, resolutions=[224])
    latency = read_block_table(public_data / "proxylessnas" / "mobile_trim.yaml", space)
    genomes = np.repeat(space.sample(50, np.random.default_rng(0)), 3, axis=0)
    genomes[:, -1] = np.tile([0, 1, 2], 50)
    low, middle, high = latency.predict(genomes).reshape(50, 3).T
    assert (low < middle).all()
    assert middle == pytest.approx(low + (high - low) / 3)


def test_a_table_that_does_not_fit_says_what_would(public_data: Path, tmp_path: Path) -> None:
    folder = public_data / "ofa_mbv3" / "note10_lut"
    assert set(NOTE10_RESOLUTIONS) < set(table_resolutions(folder))
    with pytest.raises(UsageError, match=r"has tables for 160, 164.*restrict the resolutions"):
        read_block_table(folder, _space("ofa-mbv3", width=1.2))
    with pytest.raises(UsageError, match=r"width 1.0.*choose the width"):
        read_block_table(folder, _space("ofa-mbv3", width=1.0, resolutions=[160]))
    with pytest.raises(UsageError, match="holds no latency table"):
        read_block_table(tmp_path, _space("ofa-mbv3"))
    with pytest.raises(UsageError, match="holds no latency table; give what `fleetnas export-latency` wrote"):
        search_offline(_request(public_data, latency_table=tmp_path))
    broken = tmp_path / "160_lookup_table.yaml"
    for content in ("Conv: [1, 2", "- 1\n- 2\n", "Conv:\n  count: 3\n", "!!python/object/apply:os.getcwd []"):
        broken.write_text(content)
        with pytest.raises(UsageError, match="not a block latency table"):
            read_block_table(tmp_path, _space("ofa-mbv3", resolutions=[160]))


def _request(data: Path, **changes: object) -> OfflineRequest:
    fields: dict[str, object] = {
        "space": "ofa-mbv3",
        "latency_table": data / "ofa_mbv3" / "note10_lut",
        "accuracy": data / "ofa_mbv3" / "acc_predictor.pth",
        "targets_ms": (20.0, 40.0),
        "engine": GuidedSettings(rounds=4),
    }
    return OfflineRequest(**{**fields, **changes})  # type: ignore[arg-type]


def test_an_offline_search_writes_what_it_found(public_data: Path, tmp_path: Path) -> None:
    outcome = search_offline(_request(public_data, bounds=Bounds(macs=300e6)))
    text, picture = write_offline(outcome, tmp_path / "out")
    assert picture.read_bytes().startswith(b"\x89PNG")
    document = json.loads(text.read_text())
    assert document["options"]["width"] == 1.2  # what the table was measured at
    space = make_space(document["space"], document["options"])
    table = read_block_table(public_data / "ofa_mbv3" / "note10_lut", _space(document["space"], **document["options"]))
    assert [target["target_ms"] for target in document["targets"]] == [20.0, 40.0]
    assert document["bounds"] == {"macs": 300e6}
    for entry in document["targets"] + document["front"]:
        genome = space.encode([Architecture.model_validate(entry["architecture"])])
        assert table.predict(genome)[0] == pytest.approx(entry["predicted_ms"])
        assert space.macs(genome)[0] <= 300e6
    for entry in document["targets"]:
        assert entry["predicted_ms"] <= entry["target_ms"]
        genome = space.encode([Architecture.model_validate(entry["architecture"])])
        for name, cost in subnet_costs(space, genome).items():
            assert entry[name] == cost[0]
        # The front dominates or equals every winner.
        rivals = [point["accuracy"] for point in document["front"] if point["predicted_ms"] <= entry["target_ms"]]
        assert max(rivals) >= entry["accuracy"] - 1e-12


def test_an_offline_search_takes_the_evolution_engine(public_data: Path) -> None:
    quick = EvolutionSettings(population=20, generations=5, further_generations=2)
    outcome = search_offline(_request(public_data, engine=quick, strategy=Strategy.TOP_DOWN))
    document = outcome.to_json()
    assert (document["engine"], document["strategy"]) == ("evolution", "top-down")
    assert all(target["predicted_ms"] <= target["target_ms"] for target in document["targets"])


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_table_shows_each_target_and_the_front(public_data: Path, width: int) -> None:
    from rich.console import Console

    outcome = search_offline(_request(public_data))
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(offline_table(outcome))
    text = captured.get()
    for winner in outcome.result.winners:
        assert f"{winner.latency_ms:.2f}" in text
        assert f"{100 * winner.accuracy:.2f}" in text
    assert "…" not in text
    assert f"{outcome.result.front_latency_ms[0]:.2f}" in text
    assert f"{outcome.result.front_latency_ms[-1]:.2f}" in text


def test_an_offline_search_takes_known_accuracies(public_data: Path) -> None:
    accuracy = public_data / "ofa_mbv3" / "imagenet_top1_elastic_resolution.csv"
    outcome = search_offline(
        _request(public_data, accuracy=accuracy, options={"width": 1.2, "resolutions": [160, 192]})
    )
    rows = [line.split(",") for line in accuracy.read_text().splitlines()[1:]]
    known = {float(row[-1]) for row in rows}
    for winner in outcome.result.winners:
        assert round(100 * winner.accuracy, 3) in {round(top1, 3) for top1 in known}


def test_an_offline_search_of_a_space_without_tables_says_so(public_data: Path) -> None:
    with pytest.raises(UsageError, match="no block latency table for ofa-resnet50"):
        search_offline(_request(public_data, space="ofa-resnet50"))
    with pytest.raises(UsageError, match="no design space is called"):
        search_offline(_request(public_data, space="ofa-mbv5"))
    accuracy = public_data / "ofa_mbv3" / "imagenet_top1_elastic_resolution.csv"
    with pytest.raises(ArchitectureError):
        search_offline(_request(public_data, space="compofa", accuracy=accuracy))


def test_a_picture_is_replaced_whole(tmp_path: Path) -> None:
    picture, opened_before = tmp_path / "search.png", tmp_path / "opened-before.png"
    draw_fronts({}, picture, "first")
    opened_before.hardlink_to(picture)
    first = picture.read_bytes()
    draw_fronts({}, picture, "second")
    assert opened_before.read_bytes() == first != picture.read_bytes()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["opened-before.png", "search.png"]
