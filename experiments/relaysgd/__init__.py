"""Reproduces figures and tables of the paper of RelaySGD.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175.
"""
