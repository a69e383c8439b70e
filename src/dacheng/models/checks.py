"""Whether a decoder can be built of its traits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from dacheng.errors import UsageError
from dacheng.nn.mlp import ACTIVATIONS

if TYPE_CHECKING:
    from dacheng.models.traits import DecoderTraits

_SIZES = ("vocab_size", "width", "layers", "heads", "n_kv_heads", "head_size", "mlp_size", "max_positions")
_ABOVE_ZERO = (
    "norm_eps", "rope_theta", "rope_window_theta", "logit_soft_cap", "attention_soft_cap", "attention_scale",
    "embedding_scale",
)  # fmt: skip
_CHOICES = {
    "activation": ACTIVATIONS,
    "norm": ("rms", "layer"),
    "norm_placement": ("pre", "post", "both", "sum"),
    "positions": ("rotary", "learned"),
}
_LETTERS = {"window_pattern": "SL", "rope_pattern": "RN"}


def check_traits(t: DecoderTraits) -> None:
    """Raises UsageError naming the first trait that cannot be built, its value and what would do."""
    for name in _SIZES:
        if getattr(t, name) < 1:
            _refuse("a size must be at least 1", name, getattr(t, name), "raise it")
    for name, known in _CHOICES.items():
        if getattr(t, name) not in known:
            _refuse(f"unknown {name.replace('_', ' ')}", name, getattr(t, name), "one of " + ", ".join(known))
    for name, letters in _LETTERS.items():
        _check_pattern(name, getattr(t, name), letters)
    for name in _ABOVE_ZERO:
        value = getattr(t, name)
        if value is not None and not value > 0:
            _refuse("must be above 0", name, value, "leave it out for the default")
    _check_heads(t)
    if "S" in t.window_pattern and t.window is None:
        _refuse("window_pattern has S but no window is set", "window", None, "set window, in tokens")
    if t.window is not None and t.window < 1:
        _refuse("a window holds at least the token itself", "window", t.window, "raise it, or leave it out")
    if t.ngram_rows is not None and t.ngram_rows < 1:
        _refuse("n-gram tables need rows", "ngram_rows", t.ngram_rows, "for example 32768")
    if t.ngram_rows is not None and not 2 <= t.ngram_longest <= 4:
        _refuse("n-gram tables are for lengths from 2 to at most 4", "ngram_longest", t.ngram_longest, "for example 3")
    if t.norm == "layer" and (t.norm_offset or not t.norm_weight):
        _refuse(
            "a layer norm has a plain gain and a bias", "norm", t.norm, "use rms, or leave out the other norm traits"
        )
    if t.parallel_branches and t.norm_placement != "pre":
        _refuse("parallel branches are normed before them", "norm_placement", t.norm_placement, "pre")
    _check_rope(t)
    _check_moe(t)


def _check_rope(t: DecoderTraits) -> None:
    s = t.rope_scaling
    if s is None:
        return
    field = "rope_scaling."
    if s.kind == "yarn" and t.rope_theta <= 1:
        _refuse("yarn needs wavelengths that differ", "rope_theta", t.rope_theta, "raise it above 1")
    if s.original_positions is not None and s.original_positions < 2:
        _refuse("a length of training", field + "original_positions", s.original_positions, "set it, in tokens")
    if s.kind == "llama3" and s.high_frequency_factor <= s.low_frequency_factor:
        _refuse("the ramp ends before it begins", field + "high_frequency_factor", s.high_frequency_factor, "raise it")
    if s.kind == "longrope":
        for name in ("short_factors", "long_factors"):
            if len(getattr(s, name)) != t.rotated_size // 2:
                count = t.rotated_size // 2
                _refuse(f"longrope has {count} frequencies", field + name, len(getattr(s, name)), "a factor for each")


def _check_heads(t: DecoderTraits) -> None:
    if t.latent is None and t.head_width is None and t.width % t.heads:
        near = [h for h in range(1, t.width + 1) if t.width % h == 0]
        best = min(near, key=lambda h: abs(h - t.heads))
        _refuse(
            f"width {t.width} is not divisible by heads",
            "heads",
            t.heads,
            f"use heads={best}, or width={t.heads * max(1, t.width // t.heads)}, or set head_width",
        )
    if t.heads % t.n_kv_heads:
        _refuse(
            f"heads {t.heads} is not divisible by kv_heads", "kv_heads", t.n_kv_heads, f"use a divisor of {t.heads}"
        )
    if not 0 < t.rope_fraction <= 1:
        _refuse("a share of the head", "rope_fraction", t.rope_fraction, "above 0, at most 1")
    if t.positions == "rotary" and (t.rotated_size % 2 or t.rotated_size == 0):
        field, value = ("head_width", t.head_size) if t.rope_fraction == 1 else ("rope_fraction", t.rope_fraction)
        if t.latent is not None:
            field, value = "latent.rope_width", t.latent.rope_width
        _refuse("rotary positions need an even head width", field, value, f"use {t.rotated_size + 1} dimensions")
    if t.latent is not None and (t.qk_norm or t.value_embeddings or t.attention_sinks):
        _refuse("latent attention has no qk_norm, value embeddings or sinks", "latent", t.latent, "leave them out")


def _check_moe(t: DecoderTraits) -> None:
    m = t.moe
    if m is None:
        return
    _check_pattern("moe.pattern", m.pattern, "MD")
    for name in ("experts", "experts_per_token", "expert_width", "groups", "groups_per_token"):
        if getattr(m, name) < 1:
            _refuse("must be at least 1", f"moe.{name}", getattr(m, name), "raise it")
    if m.shared_width < 0:
        _refuse("a width is at least 0", "moe.shared_width", m.shared_width, "0 for no shared network")
    if m.score not in ("softmax", "sigmoid"):
        _refuse("unknown score", "moe.score", m.score, "softmax or sigmoid")
    if m.group_score not in ("best", "two_best"):
        _refuse("unknown group score", "moe.group_score", m.group_score, "best or two_best")
    if m.experts % m.groups or m.groups_per_token > m.groups:
        _refuse("groups divide the experts, and at most all are used", "moe.groups", m.groups, "use a divisor")
    if m.group_score == "two_best" and m.groups > 1 and m.experts // m.groups < 2:
        _refuse("a group of two best needs two experts", "moe.groups", m.groups, "use fewer groups")
    if m.experts_per_token > m.experts // m.groups * m.groups_per_token:
        _refuse(
            "a token cannot choose so many", "moe.experts_per_token", m.experts_per_token, "use fewer, or more groups"
        )


def _check_pattern(name: str, pattern: str, letters: str) -> None:
    if not pattern or set(pattern) - set(letters):
        _refuse(
            f"a pattern is made of {' and '.join(letters)}",
            name,
            pattern,
            f'for example "{letters[0] * 3}{letters[1]}"',
        )


def _refuse(problem: str, field: str, value: object, remedy: str) -> NoReturn:
    raise UsageError(problem, field=field, value=value, remedy=remedy)
