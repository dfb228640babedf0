"""Puts equal boards into classes, each with one search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fleetnas.coordinator.records.equal_boards import class_name, joins, may_pool
from fleetnas.coordinator.tuning.board_class import BoardClass
from fleetnas.coordinator.tuning.board_tuner import BoardTuner
from fleetnas.coordinator.tuning.class_tuner import ClassTuner
from fleetnas.fleet_protocol.messages import AgentInfo, RuntimeSetting

MakeClassTuner = Callable[[AgentInfo, RuntimeSetting], ClassTuner]


@dataclass
class _Pooled:
    """A class with the settings and the agents that are in it."""

    setting: RuntimeSetting
    boards: BoardClass
    members: list[AgentInfo] = field(default_factory=list)

    def takes(self, info: AgentInfo, setting: RuntimeSetting) -> bool:
        """Whether a board with a setting is of this class."""
        return setting == self.setting and joins(self.members, info)


class BoardPool:
    """The classes of one campaign. Two settings of one device are never of one class."""

    def __init__(self, make_tuner: MakeClassTuner, *, verify_boards: int | None = None, seed: int = 0) -> None:
        """`make_tuner` makes the search of a class from its first board; `verify_boards` verify each target."""
        self._make_tuner, self._verify_boards, self._seed = make_tuner, verify_boards, seed
        self._classes: list[_Pooled] = []

    def tuner(self, info: AgentInfo, setting: RuntimeSetting) -> BoardTuner | None:
        """Return the tuner of a board, in the class of its equals or in a new one; None where it may not pool."""
        if not may_pool(info):
            return None
        found = next((pooled for pooled in self._classes if pooled.takes(info, setting)), None)
        if found is None:
            search = self._make_tuner(info, setting)
            boards = BoardClass(self._name(info, setting), search, verify_boards=self._verify_boards, seed=self._seed)
            found = _Pooled(setting, boards)
            self._classes.append(found)
        found.members.append(info)
        return BoardTuner(found.boards, info.agent)

    def _name(self, info: AgentInfo, setting: RuntimeSetting) -> str:
        """Return a name for a class: that of its tag, or the model of its boards, numbered where it is taken."""
        name = class_name(info)
        same = sum(pooled.setting == setting and class_name(pooled.members[0]) == name for pooled in self._classes)
        return name if not same else f"{name} #{same + 1}"
