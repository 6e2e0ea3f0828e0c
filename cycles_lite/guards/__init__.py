"""What guards, and the wrappers that make them, are built of."""
