"""Convolutional blocks of many tasks, with hand-written first and second derivatives."""
