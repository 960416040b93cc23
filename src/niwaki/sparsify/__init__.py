"""Which weights go, and what makes up for them."""
