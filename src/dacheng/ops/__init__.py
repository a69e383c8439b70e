"""Number formats that weights are kept in, and arithmetic on them."""
