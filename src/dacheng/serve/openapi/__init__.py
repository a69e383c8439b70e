"""The OpenAPI document: what every route reads and answers, one module an API, beside the readers of `serve`.

The tests hold the two together: each field that a reader takes is in the document, and the other way round.
"""
