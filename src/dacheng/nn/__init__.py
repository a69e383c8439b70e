"""Blocks of networks.

Shapes, in one notation: B batch, T time (tokens), D width, H query heads, K key/value heads, E head width, F mlp width,
V vocabulary, L layers. `q_BHTE` or a trailing comment `# (B, H, T, E)`.
"""
