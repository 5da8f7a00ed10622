"""Reproductions of Nabli et al., A²CiD²: Asynchronous Communication, 2023."""
