"""Search: from raw runs to derived ones and back, and both in one Dataset."""
