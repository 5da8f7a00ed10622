"""The tables of the A²CiD² paper."""
