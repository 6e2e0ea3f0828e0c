"""The protocol: its values and models, what they may be, and how they look on the wire."""
