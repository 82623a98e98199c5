"""What the linen and the nnx modules have in common; they only hold variables.

Both name their arguments as Flax does, so a module can be read here whatever its kind.
Flax's words and the functional API's: `momentum` is `decay`, `epsilon` is `eps`, `mask`
is `weights`, BatchNorm's `axis` is `feature_axis`. `use_fast_variance` and
`force_float32_reductions` are accepted and change nothing: statistics are always the
accurate ones, in at least float32. Where nothing is left to reduce, a value is its own
mean, as in Flax.
"""
