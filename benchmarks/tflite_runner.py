"""Runs TFLite models in whichever interpreter this Python has; needs nothing of fleetnas.

`python tflite_runner.py FOLDER` runs every `NAME.tflite` in the folder on the image in `NAME.input.npy`, and leaves
its logits in `NAME.output.npy`.
"""

import sys
from pathlib import Path

import numpy as np

try:
    from tflite_runtime.interpreter import Interpreter
except ImportError:
    from ai_edge_litert.interpreter import Interpreter


def main() -> None:
    for model in sorted(Path(sys.argv[1]).glob("*.tflite")):
        interpreter = Interpreter(model_content=model.read_bytes(), num_threads=1)
        interpreter.allocate_tensors()
        (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.set_tensor(given["index"], np.load(model.with_suffix(".input.npy")))
        interpreter.invoke()
        np.save(model.with_suffix(".output.npy"), interpreter.get_tensor(wanted["index"]))


if __name__ == "__main__":
    main()
