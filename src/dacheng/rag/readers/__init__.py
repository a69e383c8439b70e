"""Readers: one file a kind of document. Each takes the text (or bytes) of one document and yields its blocks, with the
numbers of their lines. What they read is data: nothing in it is run, imported, fetched or obeyed."""
