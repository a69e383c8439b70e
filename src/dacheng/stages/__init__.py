"""The stages of a life: one module for each `do:`, and the only place where rooms are joined into work.

A stage module (or an object of your own, `do: my_package.module:MyStage`) has

    VERSION   an int, raised when the same configuration would now give another result: it is part of the cache's key
    KIND      what it leaves: "documents", "tokenizer", "tokens", "model"…
    INPUTS    {name: Input(kind, required)} that `from:` may give it; ANY_INPUTS takes everything
    Config    a dataclass of about fifteen everyday knobs, filled by dacheng.recipes
    run(config, inputs, out, context) -> Artifact
    externals(config) -> plain data   optional: what it reads from outside the life, as part of the cache's key

and imports nothing heavy until `run`, so that a whole life is checked before its first stage begins.
"""
