"""Lets the tests import what the hostile worker is made with."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "nodes"))
