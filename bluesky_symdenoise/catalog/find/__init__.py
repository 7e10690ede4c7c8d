"""From raw runs to derived ones, back, and to both in one Dataset."""
