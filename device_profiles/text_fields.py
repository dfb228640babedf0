"""Types of pydantic fields for text of any author."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from fleetnas.device_profiles.plain_text import plain

#: Text without characters that steer a terminal or cannot be seen.
PlainText: TypeAlias = Annotated[str, AfterValidator(plain)]
