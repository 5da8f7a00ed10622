"""Reproductions of Vogels et al., PowerGossip: Low-Rank Communication, 2020."""
