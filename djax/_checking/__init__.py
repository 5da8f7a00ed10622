"""Mistakes of composition that raise no error, found by a trial."""
