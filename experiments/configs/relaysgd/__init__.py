"""Describes the tables of the RelaySGD paper."""
