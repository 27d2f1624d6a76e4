"""The export of the default fish model: published weights in, an ONNX bundle out."""
