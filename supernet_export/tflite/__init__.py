"""From layers to the tensors, operators and bytes of a TFLite model."""
