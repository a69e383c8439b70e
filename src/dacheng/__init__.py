"""dacheng: one system for the whole life of a large model."""

__version__ = "0.1.0"
