"""Tests on data whose truth is known."""
