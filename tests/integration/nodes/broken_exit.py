"""A plugin that would end its process while it is loaded."""

import sys

sys.exit("leaving already")
