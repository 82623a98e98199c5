"""The functions people call, one file a family."""
