"""Layer 7: other libraries' files and arrays."""
