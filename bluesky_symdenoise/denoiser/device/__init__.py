"""The way of a frame on one device, CPU or GPU: symmetry mates, their test, the network and the posterior."""
