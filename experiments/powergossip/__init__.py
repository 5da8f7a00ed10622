"""Reproduces figures and tables of Vogels et al., PowerGossip, 2020."""
