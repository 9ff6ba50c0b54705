"""What a model is held to: parity, identities, behaviour and cost, each a file of checks."""
