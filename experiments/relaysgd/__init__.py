"""Reproduces figures and tables of Vogels et al., RelaySum, 2021."""
