"""Every method on the same counts of real images, scored against independent counts."""
