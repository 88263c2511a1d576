"""The vision transformer of ``mnist_vit`` with activation outliers; see README.md in this folder."""
