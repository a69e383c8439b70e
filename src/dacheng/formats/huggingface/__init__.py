"""Hugging Face directories: one small file a family, a mapping from its config.json to traits and a table of names."""
