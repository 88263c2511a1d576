"""The classic small LSTM, float against dynamic INT8; see README.md in this folder."""
