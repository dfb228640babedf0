"""Top-1 accuracy of model files on images."""
