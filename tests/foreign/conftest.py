"""Nothing here is for pytest: the packages are not installed beside it. ``make test-foreign`` runs compatibility.py."""

collect_ignore_glob = ["*.py", "packages/*.py"]
