"""Other forms of a model's weights, as models of their own that share what need not change."""
