"""Tables and the picture of `compare.py`."""
