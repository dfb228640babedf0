"""`fleetnas search`."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from fleetnas.coordinator.app.assembly import Ending, SearchRequest, open_search
from pydantic import ValidationError
from rich.console import Console

from fleetnas.coordinator.app.local_device import LOCAL_FLEET, LocalDevice
from fleetnas.coordinator.app.priority import session_yields_to_measurements
from fleetnas.coordinator.campaign.standing import outcome_of
from fleetnas.coordinator.cli import bounds as bounding
from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.progress import image_progress
from fleetnas.coordinator.fleet.blob_server import DEFAULT_AT_ONCE, DEFAULT_RATE_BYTES_PER_S
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.store.database import shown_location
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.target_solver import checked_strategy
from fleetnas.coordinator.view.summary import print_summary
from fleetnas.coordinator.view.view import make_view
from fleetnas.fleet_protocol.errors import ResultsError, UsageError
from fleetnas.fleet_protocol.messages import Condition
from fleetnas.fleet_protocol.mirrors import check_mirror
from fleetnas.supernet_export.output_files import check_folder

_DEFAULT_OUT = Path("fleetnas-out")
_EXIT_CODES: dict[Ending, int] = {"complete": 0, "partial": 1, "failed": 1, "interrupted": 130}


_BOUNDS = ("--max-parameters", "--max-macs", "--max-activation-memory", "--max-file-size")
#: Options of a search without a device, and those that only it has.
_OF_OFFLINE = ("--offline", "--targets", "--strategy", *_BOUNDS, "--seed", "--out", "--json")
_ONLY_OFFLINE = ("--space", "--latency-table", "--accuracy")
#: Options of a search on this device alone, and those of a fleet.
_ONLY_LOCAL = ("--setting", "--runtime", "--threads", "--state-dir")
_ONLY_FLEET = (
    *options.CONNECTION,
    "--devices",
    "--wait-for",
    "--mirror",
    "--share",
    "--bundle-rate",
    "--bundles-at-once",
)
#: What a run keeps from its beginning on.
_KEPT = (
    "--targets",
    "--wait-for",
    "--budget",
    "--strategy",
    *_BOUNDS,
    "--seed",
    "--prior",
    "--prior-without",
    "--grace",
    "--join",
    "--deadline",
    "--warmup",
    "--min-time",
    "--min-runs",
    "--conditions",
    "--cool-for",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("search")(search)


def search(
    context: typer.Context,
    broker: options.Broker = None,
    supernet: Annotated[
        Path | None, typer.Option("--supernet", metavar="FILE", help="The exported supernet, a .supernet file.")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            metavar="MS,...|auto:N",
            help="Latency targets in ms, or auto:N for N per device setting.",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="NAME,...",
            help="Agents that take part (default: all; resumed: those of the run, and these).",
        ),
    ] = None,
    wait_for: Annotated[
        int, typer.Option("--wait-for", metavar="N", min=1, help="Agents to wait for before it begins.")
    ] = 1,
    budget: Annotated[
        int, typer.Option("--budget", metavar="N", min=3, help="Measurements per device setting before verification.")
    ] = 40,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where results and winners' model files go (default: fleetnas-out; resumed: where they went).",
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy", metavar="NAME", help="bottom-up, top-down, joint, independent, or exhaustive (small spaces)."
        ),
    ] = "bottom-up",
    max_parameters: bounding.Parameters = None,
    max_macs: bounding.Macs = None,
    max_activation_memory: bounding.ActivationMemory = None,
    max_file_size: bounding.FileSize = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of all random choices.")] = 0,
    prior: Annotated[
        str,
        typer.Option(
            "--prior", metavar="NAME", help="learned (from the store's earlier runs, where they are enough) or default."
        ),
    ] = "learned",
    prior_without: Annotated[
        str | None,
        typer.Option(
            "--prior-without",
            metavar="NAME,...",
            help="Agents from whose earlier runs nothing is learned (always: `fleetnas devices --distrust`).",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="[RUN]", help="Go on with a stored run (default: the latest interrupted)."),
    ] = None,
    grace: Annotated[
        float, typer.Option("--grace", metavar="S", min=0, help="Seconds that a lost device has to come back.")
    ] = 60.0,
    join: Annotated[float, typer.Option("--join", metavar="S", min=1, help="Seconds to wait for the devices.")] = 60.0,
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline", metavar="S", min=1, help="Seconds that one measurement may take on a device, waits aside."
        ),
    ] = 180.0,
    warmup: Annotated[
        float, typer.Option("--warmup", metavar="S", min=0, help="Seconds of warm-up per measurement.")
    ] = 0.5,
    min_time: Annotated[
        float, typer.Option("--min-time", metavar="S", min=0, help="Seconds timed per measurement, at least.")
    ] = 1.0,
    min_runs: Annotated[
        int, typer.Option("--min-runs", metavar="N", min=3, help="Timed runs per measurement, at least.")
    ] = 50,
    conditions: Annotated[
        str,
        typer.Option(
            "--conditions",
            metavar="NAME",
            help="as-is; sustained (warm the device up until its speed is steady, for products that work all day); "
            "or cool (wait for the device to cool). See docs/measuring.md.",
        ),
    ] = "as-is",
    cool_for: Annotated[
        float,
        typer.Option(
            "--cool-for",
            metavar="S",
            min=0,
            help="With cool: seconds that a measurement may wait for its device to cool.",
        ),
    ] = 60.0,
    calibration_images: Annotated[
        Path | None,
        typer.Option(
            "--calibration-images", metavar="DIR", help="Folder with a folder of images per class, to calibrate on."
        ),
    ] = None,
    evaluation_images: Annotated[
        Path | None,
        typer.Option(
            "--evaluation-images",
            metavar="DIR",
            help="The same, to evaluate winners on; never used for anything else.",
        ),
    ] = None,
    store: options.Store = None,
    fleet: options.Fleet = None,
    credentials: options.CredentialsFile = None,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    certificate_file: options.CertificateFile = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve Prometheus metrics there (see docs/watching.md).",
        ),
    ] = None,
    metrics_address: Annotated[
        str, typer.Option("--metrics-address", metavar="ADDRESS", help="Where --metrics-port listens.")
    ] = "127.0.0.1",
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", metavar="URL", help="Where agents may fetch the supernet, see `fleetnas mirror`."),
    ] = None,
    bundle_rate: Annotated[
        float,
        typer.Option("--bundle-rate", min=0.01, metavar="MB/S", help="Of supernets through the broker, in all."),
    ] = DEFAULT_RATE_BYTES_PER_S / 1e6,
    bundles_at_once: Annotated[
        int,
        typer.Option(
            "--bundles-at-once", metavar="N", min=1, help="Agents that are sent the supernet at the same time."
        ),
    ] = DEFAULT_AT_ONCE,
    share: Annotated[
        bool,
        typer.Option("--share", help="Share the fleet's results with other coordinators (MQTT 5; see docs/scale.md)."),
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="This device alone: agent and coordinator in one, no broker, no network.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option("--setting", metavar="SETTING", help="Local: such as onnxruntime,threads=4; may be repeated."),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option("--runtime", metavar="NAME", help="Local: of the one setting (default: what is installed)."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Local: of the one setting.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", metavar="DIR", help="Local: where the agent keeps its state.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="No device: by a latency table alone. Nothing is measured or verified.")
    ] = False,
    space: Annotated[str, typer.Option("--space", metavar="NAME", help="Offline: the design space.")] = "ofa-mbv3",
    latency_table: Annotated[
        Path | None, typer.Option("--latency-table", metavar="DIR|FILE", help="Offline: block latency tables.")
    ] = None,
    accuracy: Annotated[
        Path | None, typer.Option("--accuracy", metavar="FILE", help="Offline: accuracy predictor, or known values.")
    ] = None,
) -> None:
    """Search the whole fleet by measuring on every device.

    It leaves a verified model per device setting and latency target.
    """
    bounds = bounding.bounds(max_parameters, max_macs, max_activation_memory, max_file_size)
    _refuse_useless(context, offline=offline, local=local, resumed=resume is not None, conditions=conditions)
    if offline:
        _search_offline(targets, space, latency_table, accuracy, strategy, bounds, seed, out or _DEFAULT_OUT, as_json)
        return
    plan = None
    named = _names(devices, "--devices")
    if resume is None and out is None:
        out = _DEFAULT_OUT
    if prior_without is not None and prior == "default":
        raise UsageError("--prior-without is for a learned prior, and --prior default learns from nobody; leave it out")
    if resume is None:
        if targets is None:
            raise UsageError("a new search needs --targets, such as --targets 20,30 or --targets auto:4")
        plan = _planned(
            targets=str(TargetRequest.parse(targets)),
            strategy=checked_strategy(strategy),
            bounds=bounds,
            budget=budget,
            spread=min(10, budget),
            seed=seed,
            prior=_checked_prior(prior),
            prior_without=_names(prior_without, "--prior-without"),
            devices=named,
            wait_for=wait_for,
            join_s=join,
            grace_s=grace,
            deadline_s=deadline,
            conditions=_checked_conditions(conditions),
            cool_s=cool_for,
            protocol={
                "warmup_s": warmup, "min_s": min_time, "min_runs": min_runs, "max_s": max(20.0, 2 * min_time)
            },
        )  # fmt: skip
    alone = LocalDevice.parse(setting or (), runtime, threads, state_dir) if local else None
    found_at = None
    if alone is None:
        found_at = options.connection(
            broker, fleet, credentials, username, ca_file, certificate_file, key_file, password_file
        )
    request = SearchRequest(
        credentials=credentials,
        broker=found_at.broker if found_at is not None else None,
        local=alone,
        store=options.store_location(store),
        fleet=found_at.fleet if found_at is not None else LOCAL_FLEET,
        signing_key=found_at.signing_key if found_at is not None else None,
        supernet=supernet,
        plan=plan,
        resume=resume,
        devices=named,
        out=out,
        calibration_images=calibration_images,
        evaluation_images=evaluation_images,
        metrics=(metrics_address, metrics_port) if metrics_port is not None else None,
        mirror=check_mirror(mirror) if mirror is not None else None,
        bundle_rate_bytes_per_s=1e6 * bundle_rate,
        bundles_at_once=bundles_at_once,
        share=share,
    )
    raise typer.Exit(run_search(request, as_json=as_json))


def _refuse_useless(context: typer.Context, *, offline: bool, local: bool, resumed: bool, conditions: str) -> None:
    """`UsageError` where an option was given that this kind of search has no use for."""
    given = options.given(context)
    if offline:
        known = (*_OF_OFFLINE, *_ONLY_OFFLINE)
        options.refuse(context, [name for name in given if name not in known], "--offline measures on no device")
        return
    options.refuse(context, _ONLY_OFFLINE, "these options are for a search without a device (--offline)")
    if local:
        options.refuse(context, _ONLY_FLEET, "--local has neither broker nor fleet")
    else:
        options.refuse(
            context,
            _ONLY_LOCAL,
            "these options are for a search on this device alone (--local), and agents of a fleet are told their "
            "settings by `fleetnas-agent run`",
        )
    if resumed:
        options.refuse(context, _KEPT, "a resumed run keeps what it began with")
    elif conditions != "cool":
        options.refuse(context, ("--cool-for",), "only --conditions cool waits for a device to cool")
    if "--metrics-port" not in given:
        options.refuse(context, ("--metrics-address",), "metrics are served with --metrics-port alone")


def _names(text: str | None, option: str) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(f"{option} {text!r} names nobody; give agents such as pi4,pi5, or leave it out")
    return names


def _checked_prior(name: str) -> Literal["learned", "default"]:
    if name == "learned":
        return "learned"
    if name == "default":
        return "default"
    raise UsageError(f"--prior {name!r} is not known; give learned or default")


def _checked_conditions(name: str) -> Condition:
    for known in get_args(Condition):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(f"--conditions {name!r} is not known; give one of {', '.join(get_args(Condition))}")


def _search_offline(
    targets: str | None,
    space: str,
    latency_table: Path | None,
    accuracy: Path | None,
    strategy: str,
    bounds: Bounds,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    from fleetnas.coordinator.search.offline import OfflineRequest, offline_table, search_offline, write_offline

    wanted = TargetRequest.parse(targets or "").fixed_ms
    if not wanted or latency_table is None or accuracy is None:
        raise UsageError("an offline search needs --targets in milliseconds, --latency-table and --accuracy")
    check_folder("--out", out)
    outcome = search_offline(
        OfflineRequest(
            space, latency_table, accuracy, wanted, strategy=checked_strategy(strategy), bounds=bounds, seed=seed
        )
    )
    if as_json:
        typer.echo(json.dumps(outcome.to_json()))
    else:
        Console().print(offline_table(outcome))
    written = write_offline(outcome, out)
    typer.echo(f"written: {', '.join(str(path) for path in written)}", err=as_json)


def run_search(request: SearchRequest, *, as_json: bool) -> int:
    """Run a search with its view on this terminal; returns the exit code."""
    console = Console()
    # A service manager's stop and a closed terminal are the user's Ctrl-C: the run ends in order and can be resumed.
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    store = MeasurementStore.open(request.store)
    with image_progress() as progress:
        running = open_search(request, lambda: make_view(console, as_json), store, image_progress=progress)
    try:
        with session_yields_to_measurements():
            ending = running.run()
        outcome = outcome_of(store, running.run_id)
    except ResultsError as error:
        raise ResultsError(f"{error}. Go on with: {_resume_command(running.run_id, request)}") from error
    finally:
        running.close()
    if not as_json:
        print_summary(console, outcome)
        if running.settings.out is not None and ending != "interrupted":
            console.print(f"results and model files: {running.settings.out}", markup=False, highlight=False)
        lost = any(device.status != "finished" for device in outcome.devices)
        if ending == "interrupted" or lost:
            console.print(_what_next(ending, running.run_id, request), markup=False, highlight=False, soft_wrap=True)
    return _EXIT_CODES[ending]


def _what_next(ending: Ending, run_id: str, request: SearchRequest) -> str:
    resume = _resume_command(run_id, request)
    if ending == "interrupted":
        return f"interrupted; everything measured is stored. Go on with: {resume}"
    return f"not every device finished. Once those that did not can measure again, go on with: {resume}"


def _resume_command(run_id: str, request: SearchRequest) -> str:
    if request.local is not None:
        state = request.local.state_folder
        where = ["--local", *(["--state-dir", str(state)] if state is not None else [])]
    elif request.credentials:
        where = ["--credentials", str(request.credentials)]
    else:
        where = ["--broker", str(request.broker), *(["--fleet", request.fleet] if request.fleet != "default" else [])]
    if request.mirror is not None:
        where += ["--mirror", request.mirror]
    return shlex.join(["fleetnas", "search", *where, "--store", shown_location(request.store), "--resume", run_id])


def _planned(**fields: object) -> CampaignPlan:
    try:
        return CampaignPlan.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise UsageError(
            f"{where} {fault['input']!r} cannot be used: {fault['msg']}; give another value to its option"
        ) from None
