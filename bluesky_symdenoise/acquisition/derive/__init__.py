"""Rows of a raw run in, rows of its derived run out."""
