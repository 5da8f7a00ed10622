"""Describes the comparison of methods that communicate rarely."""
