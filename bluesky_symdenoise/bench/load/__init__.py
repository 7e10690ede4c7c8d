"""What it costs: acquisition, replay, servers and searches."""
