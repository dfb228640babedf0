"""Words that the glossary replaced, in texts and names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from rigs.architecture.sources import Offence, Source

#: Replaced words, searched in code, comments and documents. Space stands for a space, a hyphen or an underscore.
ANYWHERE = {
    "foretell": "foretells?|foretold",
    "evidence": "evidence",
    "lesson": "lessons?",
    "desk": "desks?",
    "hand out": "(?:hand|hands|handed|handing) out",
    "take back": "(?:take|takes|took|taken|taking) back",
    "conclude": "concludes?|concluded",
    "track": "tracks?",
    "standing": "standings?",
    "hungry": "hungry",
    "fates": "fates",
    "hear": "hears?|heard|hearing",
    "pass on": "(?:pass|passes|passed|passing) on",
    "stray": "strays?",
    "belief": "beliefs?",
    "sharpen": "sharpens?|sharpened",
    "misfit": "misfits?",
    "active choice": "active choice",
    "take home": "(?:take|takes|took|taken) home",
    "roll call": "roll calls?",
    "audience": "audiences?",
    "news": "news",
    "outage": "outages?",
    "refusals": "refusals",
    "workbench": "workbench",
    "carry out": "(?:carry|carries|carried|carrying) out",
    "equipment": "equipment",
    "patient": "patients?",
    "examine": "examines?|examined",
    "mend": "mends?|mended|mending",
    "presence": "presence",
    "give way": "(?:give|gives|gave|giving) way",
    "stillborn": "stillborn",
    "last words": "last words",
    "post mortem": "post mortem",
    "vanish": "vanish|vanishes|vanished",
    "dared": "dared",
    "hopeless": "hopeless",
}

#: Replaced words that are ordinary English elsewhere, searched as parts of the names that the code defines.
NAMES = {
    "spread": "spread",
    "due": "due",
    "stale": "stale",
    "fresh": "fresh",
    "wire": "wire",
    "say": "say|says|said",
    "lose": "lose|loses",
    "roots": "roots",
    "library": "library|libraries",
    "likely": "likely",
    "remembered": "remembered",
    "known accuracy": "known accuracy",
    "why": "why",
    "broadcast": "broadcast|broadcasts",
    "watching": "watching",
    "watched": "watched",
    "lasts": "lasts",
    "holding": "holding",
    "health": "health",
    "hope": "hope",
}

#: Names that are wrong only as a whole, as `over` is part of many good ones.
WHOLE_NAMES = ("over", "Next")

#: The same of modules.
MODULE_NAMES = ("held_out", "sentinel")

#: Where a word means something else, as a pattern of paths: (word, places, meaning).
ALLOWED = (
    ("*", r"tests/rigs/architecture/words\.py", "this list"),
    ("*", r"coordinator/store/migrations/versions/.*", "names of tables as they were"),
    ("presence", r"coordinator/predictors/.*|docs/predictors\.md", "a feature: whether a network has the block"),
    ("spread", r"coordinator/predictors/.*", "the standard deviation around a mean"),
    ("spread", r"supernet_export/(quantisation|digits/.*|training/digits_accuracy)\.py", "a range of values"),
    ("spread", r"coordinator/view/strip\.py", "lays text out over a width"),
    ("evidence", r"coordinator/predictors/.*", "the marginal likelihood of a model"),
    (
        "wire",
        r"coordinator/(fleet/work_queue|campaign/setting_run|records/(outcome|stored)|report/results|store/schema)\.py",
        "`wire_bytes`, a stored column",
    ),
    (
        "track",
        r"coordinator/(app/tracking|cli/options|cli/runs|cli/help_sections)\.py|docs/(using-models|cli)\.md|CHANGELOG\.md|pyproject\.toml",
        "`--track`, an option: to log a run to a tracker",
    ),
    ("audience", r"pyproject\.toml", "a classifier of package indexes"),
    ("library", r"agent/cli/doctor/?.*\.py|agent/host/.*|agent/runtimes/.*", "a C library"),
)


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z])(?:{words.replace(' ', '[ _-]')})(?![A-Za-z])", re.IGNORECASE)


_ANYWHERE = {word: _pattern(words) for word, words in ANYWHERE.items()}
_NAMES = {word: _pattern(words) for word, words in NAMES.items()}
_ANY_WORD = _pattern("|".join(ANYWHERE.values()))
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def _allowed(word: str, path: str) -> bool:
    return any(name in ("*", word) and re.fullmatch(place, path) for name, place, _ in ALLOWED)


def words_in_text(path: str, text: str) -> Iterator[Offence]:
    """Replaced words anywhere in a file; in Python also as parts of names."""
    joined = re.sub(r"\n[ \t#:]*", lambda gap: " " * len(gap[0]), text) if path.endswith((".py", ".md")) else text
    found = [(match.start(), match[0], match[0]) for match in _ANY_WORD.finditer(joined)]
    for match in re.finditer(r"\b_*[A-Z]\w*[a-z]\w*\b", text if path.endswith(".py") else ""):
        split = _HUMPS.sub(" ", match[0])
        if split != match[0]:
            found += [(match.start(), match[0], part[0]) for part in _ANY_WORD.finditer(split)]
    for start, shown, part in found:
        word = next(word for word, pattern in _ANYWHERE.items() if pattern.fullmatch(part))
        if not _allowed(word, path):
            yield Offence(path, text.count("\n", 0, start) + 1, f"the word `{shown}` ({word})")


def _defined_names(source: Source) -> Iterator[tuple[str, int]]:
    yield source.path.rpartition("/")[2].removesuffix(".py"), 1
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def words_in_names(source: Source) -> Iterator[Offence]:
    """Replaced words in names that the file defines."""
    module = source.path.rpartition("/")[2].removesuffix(".py")
    if module in MODULE_NAMES:
        yield Offence(source.path, 1, f"the module `{module}`")
    for name, line in sorted(set(_defined_names(source)), key=lambda found: found[1]):
        if name in WHOLE_NAMES and not _allowed(name, source.path):
            yield Offence(source.path, line, f"the name `{name}`")
        split = _HUMPS.sub("_", name)
        for word, pattern in _NAMES.items():
            if pattern.search(split) and not _allowed(word, source.path):
                yield Offence(source.path, line, f"the name `{name}` ({word})")
