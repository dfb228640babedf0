"""The precision that each measurement of a search needs: a function of what is predicted and of what it decides.

A subnet that is measured for the first time teaches the predictor. Noise of half of the predictor's own uncertainty
hardly slows that down, and takes a fraction of the time. A target is judged by a re-measurement alone, which is as
precise as winners are close to their targets.
"""

from __future__ import annotations

from fleetnas.coordinator.records.precision import AskedPrecision

#: Precision of a re-measurement: winners are chosen one to three percent below their targets, and sessions of one file
#: differ by about a percent or two.
VERIFICATION = AskedPrecision(half_width_percent=1.0, sessions=3)
#: Half-widths of other measurements, percent: where nothing is known yet, and where winners are told apart.
COARSEST_PERCENT, FINEST_PERCENT = 6.0, 2.0


def precision_of(predicted_ms: float | None, deviation_ms: float | None) -> AskedPrecision:
    """Return the precision of a subnet's first measurement, from its prediction and standard deviation, ms.

    The 95 % half-width is one standard deviation of the prediction: the measurement's own is then half of that. A
    prediction is None where the predictor is of no use.
    """
    if predicted_ms is None or deviation_ms is None:
        return AskedPrecision(COARSEST_PERCENT)
    percent = 100.0 * deviation_ms / predicted_ms
    return AskedPrecision(min(max(percent, FINEST_PERCENT), COARSEST_PERCENT))
