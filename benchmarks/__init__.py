"""Measurements: accuracy, time, memory and collectives, beside the peers."""
