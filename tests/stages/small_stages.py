"""A life of the real stages, small enough for every day."""

STAGES = [
    {"name": "machine", "do": "measure"},
    {"name": "data", "do": "data", "split": {"valid_fraction": 0.2}},
    {"name": "tokenizer", "do": "tokenizer", "from": "data", "vocab_size": 300},
    {"name": "tokens", "do": "tokenize", "from": ["data", "tokenizer"], "context_length": 64},
    {
        "name": "plan", "do": "plan", "from": ["machine", "tokens"], "budget": {"tokens": 40960}, "max_epochs": 20,
        "traits": {"width": 32, "layers": 1, "heads": 2},
    },
    {
        "name": "train", "do": "train", "from": ["tokens", "tokenizer", "plan"], "batch_rows": 8, "eval_every": 10,
        "save_every": 10, "steps": 20, "precision": "fp32", "optimizer": {"lr": 1e-2},
    },
    {
        "name": "judge", "do": "eval", "from": ["train", "data"], "byte_orders": [2, 3], "token_orders": [2],
        "parse_prompts": 3, "parse_tokens": 8,
    },
    {
        "name": "samples", "do": "sample", "from": ["train", "data"], "prompts": ["def ", "<script>"], "max_tokens": 8,
        "ngram_order": 3,
    },
    {
        "name": "report", "do": "report",
        "from": ["machine", "data", "tokenizer", "tokens", "plan", "train", "judge", "samples"],
    },
]  # fmt: skip
