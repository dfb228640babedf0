"""Student's t: agents widen half-widths by it, and the coordinator takes standard errors out of them again."""

from __future__ import annotations

#: Two-sided 95 % quantiles by degrees of freedom, from 1 on.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262),
    *(2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101),
)
#: The same of the normal distribution.
Z95 = 1.959964


def student_t95(degrees: int) -> float:
    """Return the two-sided 95 % quantile with this many degrees of freedom, at least one, within 0.2 %."""
    return _T95[degrees - 1] if degrees <= len(_T95) else Z95 + 2.6 / degrees
