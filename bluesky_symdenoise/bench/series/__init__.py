"""Series of frames that share photons: what borrowing gains and costs, beside peers that use the same rows."""
