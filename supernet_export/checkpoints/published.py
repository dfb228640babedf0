"""List the published once-for-all supernets, by their names in `fleetnas export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.checkpoints.published_file import DigestKind, PublishedFile

_FILES = "https://raw.githubusercontent.com/han-cai/files/master/ofa"
_HUGGING_FACE = "https://huggingface.co/han-cai/ofa/resolve/47a736a0be6ad593f936d91ae168ccdd05326be1"


@dataclass(frozen=True, slots=True)
class PublishedSupernet:
    """A supernet's checkpoint, its design space, and the accuracy predictor published for it."""

    checkpoint: PublishedFile
    space: str
    options: Mapping[str, Any] = field(default_factory=dict)
    accuracy_predictor: PublishedFile | None = None


def _file(name: str, digest_kind: DigestKind, digest: str, url: str | None = None) -> PublishedFile:
    return PublishedFile(name, f"{_FILES}/ofa_nets/{name}" if url is None else url, None, digest_kind, digest)


_MBV3_ACCURACY = _file(
    "acc_predictor.pth",
    "sha256",
    "48685122a3540636b06699af66cd816456b25f29b69563e2fda9bed4018eeba0",
    f"{_FILES}/acc_predictor.pth",
)

PUBLISHED: Mapping[str, PublishedSupernet] = {
    "ofa-mbv3-w1.0": PublishedSupernet(
        _file("ofa_mbv3_d234_e346_k357_w1.0", "git-blob", "55d835981d8acd1053657a951b18887a724ddcbf"),
        "ofa-mbv3",
        {"width": 1.0},
        _MBV3_ACCURACY,
    ),
    "ofa-mbv3-w1.2": PublishedSupernet(
        _file("ofa_mbv3_d234_e346_k357_w1.2", "git-blob", "d75a3613bae216091f61fc4b7df77d49cc82ed32"),
        "ofa-mbv3",
        {"width": 1.2},
        # The authors' tutorial searches this supernet with the same predictor: it ranks subnets of either width.
        _MBV3_ACCURACY,
    ),
    "ofa-proxyless-w1.3": PublishedSupernet(
        _file("ofa_proxyless_d234_e346_k357_w1.3", "git-blob", "c97035a7a6fe611508f3bb35ffac0ef77262f5e0"),
        "ofa-proxyless",
        {"width": 1.3},
    ),
    "ofa-resnet50": PublishedSupernet(
        PublishedFile(
            "ofa_supernet_resnet50",
            f"{_HUGGING_FACE}/ofa_supernet_resnet50",
            192_773_235,
            "sha256",
            "3406a4c852f4573a58e9a01f35406baa4ad3787044ffadc6ea45571ad2b9123a",
        ),
        "ofa-resnet50",
        {},
        _file(
            "ofa_resnet50_acc_predictor.pth",
            "sha256",
            "68912b4b4be38feb504c5b773dc847af23a637984d5eaabf548de72cd0f79529",
            f"{_FILES}/ofa_resnet50_acc_predictor.pth",
        ),
    ),
}


def published(name: str) -> PublishedSupernet:
    """Return the supernet published as `name`; `UsageError` lists the names if there is none."""
    if name not in PUBLISHED:
        raise UsageError(f"no published supernet is called {name!r}; there are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
