"""The examples are not installed: they are found in the checkout, after the package under test."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
