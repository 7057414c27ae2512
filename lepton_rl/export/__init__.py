"""An adapted model as a file that needs nothing of this package: ONNX and `torch.export`, and int8."""
