"""Runnable examples of jaxnorm; start with `python -m examples.demo --help`."""
