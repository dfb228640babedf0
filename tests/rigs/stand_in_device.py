"""A device's accelerator in the shape of a program: prints times that follow from the model file alone.

Run by the real `command` runtime of a real agent. It imports little, since it starts for every measurement.
"""

import sys
import zlib


def latency_ms(model: bytes, factor: float) -> float:
    """Grows with the file, up to half a percent that no predictor foresees."""
    return factor * (0.05 + len(model) / 1e5) * (1 + 0.005 * (zlib.crc32(model) % 1000 / 500 - 1))


if __name__ == "__main__":
    path, factor, runs = sys.argv[1:]
    with open(path, "rb") as file:
        median_ms = latency_ms(file.read(), float(factor))
    times = [median_ms * (1 + 0.001 * (i % 3 - 1)) for i in range(max(int(runs), 3))]
    sys.stdout.write(f'{{"times_ms": {times}, "provider": "stand-in", "warm_up_s": 0}}\n')
