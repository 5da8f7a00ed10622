"""Finds mistakes in optimizers that raise no error, by a trial on tiny models."""
