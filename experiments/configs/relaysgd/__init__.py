"""The tables of the RelaySGD paper."""
