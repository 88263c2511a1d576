"""Or data._target_=IMPORT.PATH."""
