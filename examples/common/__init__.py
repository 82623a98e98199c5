"""The pieces that the examples share, one job a module."""
