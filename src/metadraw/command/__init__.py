"""Hydra's edge: configs, keys, names, and how errors are reported."""
