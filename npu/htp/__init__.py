"""Qualcomm's HTP through ONNX Runtime: graphs to ONNX, to context binaries, to sessions."""
