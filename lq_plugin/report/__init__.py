"""What was made, measured and decided: the manifest on disk and the table on the terminal."""
