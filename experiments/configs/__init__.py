"""Describes the tables of the papers as values, with a configuration for each row."""
