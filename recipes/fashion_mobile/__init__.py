"""A mobile CNN with uneven channels on Fashion-MNIST; see README.md in this folder."""
