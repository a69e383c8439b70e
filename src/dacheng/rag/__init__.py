"""Grounding: passages of documents, their retrieval, and answers that cite them or abstain."""
