"""Compares methods whose workers average rarely."""
