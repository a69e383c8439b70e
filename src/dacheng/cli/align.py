"""dacheng align: learning from preferences and rewards."""

from __future__ import annotations

from dacheng.cli.lazy_verbs import lazy_verbs

app = lazy_verbs(
    "align",
    "Learn from what people prefer.",
    {
        "show": ("dacheng.cli.align_show:show", "what of a conversation is learnt, in colour"),
        "label": ("dacheng.cli.align_label:label", "compare replies by hand"),
        "agreement": ("dacheng.cli.align_label:agreement", "how far annotators agree"),
        "pairs": ("dacheng.cli.align_preferences:pairs", "what files of preferences are like"),
        "prefer": ("dacheng.cli.align_preferences:prefer", "train a policy on preferences: DPO and its relatives"),
        "reward": ("dacheng.cli.align_preferences:reward", "train a reward model on comparisons"),
        "score": ("dacheng.cli.align_preferences:score", "rank conversations by a reward model"),
        "report": ("dacheng.cli.align_report:report", "a run of reinforcement learning as a page"),
        "judge": ("dacheng.cli.align_judging:judge", "let a model compare replies"),
        "revise": ("dacheng.cli.align_judging:revise", "let a model criticise and revise replies"),
    },
    "Fine-tuning on examples and learning from rewards are recipes: dacheng train recipes/align/sft.yaml, grpo.yaml…",
)
