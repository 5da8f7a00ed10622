"""Contains everything that several experiments use."""
