"""Patterns whose truth is known."""
