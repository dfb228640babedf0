"""Runs TFLite models in whichever interpreter this Python has; needs nothing of fleetnas.

`python tflite_runner.py FOLDER` runs every `NAME.tflite` in the folder, of batch 1, on the images in `NAME.input.npy`
(n, height, width, channels), and leaves its logits (n, classes) in `NAME.output.npy`.
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
        logits = []
        for image in np.load(model.with_suffix(".input.npy")):
            interpreter.set_tensor(given["index"], image[None])
            interpreter.invoke()
            logits.append(interpreter.get_tensor(wanted["index"])[0])
        np.save(model.with_suffix(".output.npy"), np.stack(logits))


if __name__ == "__main__":
    main()
