"""The process that the library runs in."""
