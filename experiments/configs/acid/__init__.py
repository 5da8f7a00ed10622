"""Describes the tables of the A²CiD² paper."""
