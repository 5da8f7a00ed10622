"""Reproduces figures and tables of Nabli et al., A²CiD², 2023."""
