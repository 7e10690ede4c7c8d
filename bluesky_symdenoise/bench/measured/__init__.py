"""The page of measured figures."""
