"""A plugin that imports what no worker can use."""

import os  # noqa: F401
