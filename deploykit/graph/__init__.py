"""What is read from and done to ONNX graphs, one subject a file."""
