"""Names that messages, options and stored plans choose among; nothing heavy is imported for them."""

from __future__ import annotations

from typing import Literal, TypeAlias

#: Names of the runtimes; an interpreter runs in the process that loads it.
InterpreterName: TypeAlias = Literal["onnxruntime", "litert"]
RuntimeName: TypeAlias = Literal[InterpreterName, "adb", "command"]
Precision: TypeAlias = Literal["fp32", "int8"]
#: Under which condition a device is measured: as it happens to be, warmed up until its speed is steady, or cooled down.
Condition: TypeAlias = Literal["as-is", "sustained", "cool"]
