"""What is found in data whose truth is known."""
