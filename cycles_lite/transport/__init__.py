"""How one request reaches an authority, and its answer comes back."""
