"""The classic TransformerLens interface (2.x), over this core."""
