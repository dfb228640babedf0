"""Which agents run another fleetnas than this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetnas.fleet_protocol.messages import AgentInfo


def is_out_of_date(info: AgentInfo, our_version: str) -> bool:
    """Whether an agent runs another fleetnas than the one that this coordinator would install on it.

    A version's local label, behind a plus sign, tells states of one checkout apart. An agent or a coordinator without
    one runs a release or the checkout itself, and only the release number is compared.
    """
    theirs = info.versions.get("fleetnas")
    if theirs is None or theirs == our_version:
        return False
    (release, _, label), (our_release, _, our_label) = theirs.partition("+"), our_version.partition("+")
    return release != our_release or bool(label and our_label)
