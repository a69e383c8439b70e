"""Data: from files that people have to batches that a trainer takes.

sources (read records) -> cleaning, dedup, split (filters: an iterator to an iterator, every drop counted) -> documents
(records on disk) -> shards (token ids, Megatron's .bin/.idx) -> packing (which piece goes in which row) -> batches,
mixture (seeded, resumable in O(1) at any world size). `prepare` joins the first half, `tokenize` the second.
"""
