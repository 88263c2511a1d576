"""Formats of the artifacts; default: onnx, openvino and pt2."""
