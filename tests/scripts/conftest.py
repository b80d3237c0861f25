"""The scripts can be imported, as `python scripts/NAME.py` makes it."""

from __future__ import annotations

import sys

from paths import REPO

sys.path.insert(0, str(REPO / "scripts"))
