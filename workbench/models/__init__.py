"""Models: a hooked Transformer composed of bricks, its families, and what loads them."""
