"""Model directories and the files in them: Hugging Face layouts read and written without transformers."""
