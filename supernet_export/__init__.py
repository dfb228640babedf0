"""Design spaces, the supernet bundle, slicing a subnet out of it, and emitting ONNX and TFLite."""
