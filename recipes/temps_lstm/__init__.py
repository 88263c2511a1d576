"""An LSTM that forecasts hourly temperatures; see README.md in this folder."""
