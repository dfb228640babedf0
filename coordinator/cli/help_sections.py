"""Lay out a command's arguments and options in titled groups, so that a long help text can be read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Stands for the hyphens of words such as `--min-runs` while a help text is broken into lines.
NO_BREAK = "\u2011"
_UNBREAKABLE = re.compile(r"(?<=\w)-(?=\w)")
_DEFAULT_TIME = re.compile(r"default: ([0-9.]+)(?=[];])")
_RANGE, _LEAST = re.compile(r"([0-9.e+-]+)<=x<=([0-9.e+-]+)(?=[];])"), re.compile(r"x>=([0-9.e+-]+)(?=[];])")
#: Title of the options of a short help text, and of those that are in no group of a long one.
OPTIONS, OTHERS = "Options", "Other options"
#: Title of `--help` in a help text with groups.
HELP = "Help"

_CONNECTION = (
    *("--broker", "--fleet", "--credentials", "--username", "--password-file", "--ca-file", "--certificate-file"),
    "--key-file",
)
_DELIVERY = ("--mirror", "--bundle-rate", "--bundles-at-once", "--share")
#: Groups of the commands that find, measure or show subnets on devices, in the order of the help text.
_ON_DEVICES: Mapping[str, tuple[str, ...]] = {
    "What to search or measure": (
        *("--supernet", "--targets", "--targets-file", "--target", "--minimise", "--accuracy-floor", "--card"),
        *("--strategy", "--devices", "--resume", "--name", "--setting", "--runtime", "--threads", "--precision"),
        *("--baseline", "--baseline-accuracy", "--input-shape", "--local", "--offline"),
    ),
    "How long": ("--budget", "--timeout", "--dry-run", "--wait-for", "--join", "--grace", "--deadline"),
    "How it is measured": (
        *("--conditions", "--cool-for", "--warmup", "--min-time", "--min-runs", "--fixed-protocol", "--verify-boards"),
        *("--no-pool", "--profile-winners"),
    ),
    "Bounds on every winner": ("--max-parameters", "--max-macs", "--max-activation-memory", "--max-file-size"),
    "Few models for all": ("--models", "--worst-case", "--weights", "--verify"),
    "Images": ("--calibration-images", "--evaluation-images", "--selection-images", "--rerank", "--some-classes"),
    "Results and model files": ("--out", "--output", "--profile-winners", "--track", "--store", "--json"),
    "Connection to the fleet": _CONNECTION,
    "Without a device (--offline)": ("--space", "--latency-table", "--accuracy", "--engine"),
    "Advanced": (
        *("--seed", "--prior", "--prior-without", "--state-dir", *_DELIVERY, "--metrics-port", "--metrics-address"),
    ),
}
_GROUPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("search", "measure", "bench", "portfolio", "watch"), _ON_DEVICES),
    "devices": {
        "What is listed": ("--wait", "--authority", "--json"),
        "Which devices teach others": ("--distrust", "--trust", "--store"),
        "Connection to the fleet": _CONNECTION,
    },
    "train": {
        "What is trained": ("--val", "--out", "--resume", "--from", "--channels", "--fit"),
        "Design space": ("--space", "--options", "--resolutions", "--kernels", "--expands", "--depths", "--width"),
        "How long": ("--epochs", "--batch-size", "--schedule", "--subnets", "--warm-up"),
        "How it learns": (
            *("--optimizer", "--learning-rate", "--weight-decay", "--label-smoothing", "--class-weights"),
            *("--clip-norm", "--ema", "--teacher"),
        ),
        "Advanced": (
            *("--precision", "--seed", "--threads", "--workers", "--checkpoint-minutes", "--checkpoint-steps"),
            "--cache",
        ),
    },
    "finetune": {
        "What is trained": ("--bundle", "--images", "--val", "--output", "--teacher", "--resume"),
        "How long": ("--epochs",),
        "Advanced": ("--learning-rate", "--batch-size", "--precision", "--seed", "--threads", "--json"),
    },
    "accuracy evaluate": {
        "What is evaluated": ("--output", "--subnets", "--sampling", "--seed", "--shard", "--runtime", "--precision"),
        "Images": ("--images", "--calibration-images", "--calibration-count", "--some-classes"),
        "Advanced": ("--workers", "--scheduler", "--cache"),
    },
    "installer": {
        "What devices install": ("--extras", "--index-url"),
        "Where it is served": ("--install-host", "--install-port", "--advertise"),
        "Connection to the fleet": _CONNECTION,
    },
    "dashboard": {
        "What is shown": ("--store",),
        "Who may read it": ("--host", "--port", "--allow-host", "--token-file"),
        "Runs at work": _CONNECTION,
    },
    "export": {"What is written": ("--output", "--cache")},
}


def write_options(command: Any, context: Any, formatter: Any) -> None:
    """Write a command's arguments and options into a help text, in their groups."""
    groups = groups_of(context.command_path)
    sections: dict[str, list[tuple[int, tuple[str, str]]]] = {title: [] for title in ("Arguments", *groups)}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        title = HELP if "--help" in parameter.opts and groups else title_of(parameter, groups)
        names = groups.get(title, ())
        place = next((names.index(name) for name in parameter.opts if name in names), len(names))
        word = argument_word(parameter) if parameter.param_type_name == "argument" else record[0]
        sections.setdefault(title, []).append((place, (word, _described(parameter, record[1]))))
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl([row for _, row in sorted(rows, key=lambda each: each[0])])


def argument_word(argument: Any) -> str:
    """Return an argument as usage lines write it: `NAME`, `[NAME]` where it may be left out, `NAME...` for several."""
    name = str(argument.metavar or argument.name.upper())
    name = name if argument.required or name.startswith("[") else f"[{name}]"
    return f"{name}..." if argument.nargs != 1 and not name.endswith("...") else name


def _described(parameter: Any, text: str) -> str:
    """Put typer's remarks on defaults and ranges into words."""
    if parameter.metavar == "TIME":
        text = _DEFAULT_TIME.sub(lambda found: f"default: {float(found[1]):g}s", text)
    text = _RANGE.sub(r"\1 to \2", _LEAST.sub(r"at least \1", text))
    return _UNBREAKABLE.sub(NO_BREAK, text)


def groups_of(command_path: str) -> Mapping[str, tuple[str, ...]]:
    """Return the groups of a command's options, such as of `fleetnas search`; empty where its help text is short."""
    return _GROUPS.get(command_path.partition(" ")[2], {})


def title_of(parameter: Any, groups: Mapping[str, tuple[str, ...]]) -> str:
    """Return the title under which an argument or option stands in a help text with these groups."""
    if parameter.param_type_name == "argument":
        return "Arguments"
    panel = getattr(parameter, "rich_help_panel", None)
    if panel:
        return str(panel)
    found = (title for title, names in groups.items() if set(parameter.opts) & set(names))
    return next(found, OTHERS if groups else OPTIONS)
