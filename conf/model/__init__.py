"""Or model._target_=IMPORT.PATH."""
