"""A small vision transformer on 5,000 real MNIST images; see README.md in this folder."""
