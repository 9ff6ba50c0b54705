"""The parts of a generation: `settings` of each row, `rows` said so far, and the `writer`'s passes.

`prefix` finds what rows share, `capture` keeps activations; `workbench.core.generate` is the call.
"""
