"""GGUF, the file format of llama.cpp: a model, its tokenizer and its chat template in one file, read and written."""
