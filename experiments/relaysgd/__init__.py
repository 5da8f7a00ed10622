"""Reproductions of Vogels et al., RelaySum for Decentralized Deep Learning, 2021."""
