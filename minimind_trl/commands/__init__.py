"""The verbs of `minimind-trl`, one file each, and the demo."""
