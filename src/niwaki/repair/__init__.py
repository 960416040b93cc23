"""What is left is refitted, so that it does the work of what went: least squares, and biases."""
