"""What one event of a derived run holds: known to all who write or read it."""
