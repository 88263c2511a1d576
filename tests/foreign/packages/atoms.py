"""schnetpack: its releases for Python 3.11 import names that torch no longer has. A model is added when they do not."""

import schnetpack

REQUIREMENTS = ["schnetpack"]
MODELS = {}

assert schnetpack
