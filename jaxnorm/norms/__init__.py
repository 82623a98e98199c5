"""The functions people call, one file per family."""
