"""Which two tokens each token was merged from, for vocabularies that only keep the order of their tokens.

tiktoken's rank files and SentencePiece's BPE models list tokens by priority. To encode, they join the neighbours whose
*union* has the highest priority, the leftmost of equals, over and over. The tokenizers library, merges.txt and GGUF
want the pairs themselves.

For every token T there is at most one pair that is ever joined into it. Proof: as long as nothing is joined across the
ends of T, what happens between them depends on T's characters alone, so it passes through the states of the encoding
of T by itself, and of these at most one has two parts. Other pairs whose union happens to be T never meet; listing them
too (as transformers' converters do) changes no ids, and only makes files twice as large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

# `last_pair` takes about len² steps. Where it is needed, longer tokens (no real one has been seen) list every pair.
_LONGEST_REPLAYED = 64


def merges_of(tokens: Iterable[str], priority: Mapping[str, int], letters: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs, in the order of the tokens they make.

    tokens: in the order in which they are joined, first to last. priority: of each its place in that order, equal where
    the leftmost comes first. letters: the single characters that texts are made of at the start.

    A pair (x, y) is T's if x and y come to stand beside each other in T: if no merge across the place where they touch
    comes before the merges that complete them. So that place is looked at in reverse: of the two tokens there, undo the
    one that was completed last, and see whether what lies there then would have been joined sooner. (The same idea as
    is_valid_token_pair in github/rust-gems, crates/bpe.) The loop is flat because it runs a million times.
    """
    made = {letter: (-1, "", "") for letter in letters if len(letter) == 1}  # token -> when it was made, and of what
    odd: set[str] = set()  # made through a token of lower priority than its own: no training does that, files may
    merges: list[tuple[str, str]] = []
    rank_of = priority.get
    for token in tokens:
        rank = priority[token]
        for i in range(1, len(token)):
            x, y = left, right = token[:i], token[i:]
            if left not in made or right not in made or (odd and not odd.isdisjoint((left, right))):
                continue
            before, of_x, of_y = rank, made[left], made[right]
            while rank_of(x + y, before) >= before:
                if of_x[0] > of_y[0]:
                    before, x = of_x[0], of_x[2]
                    of_x = made[x]
                elif of_y[0] >= 0:  # of equal merges the leftmost comes first: the one across, not the right one's
                    before, y = of_y[0] + 1, of_y[1]
                    of_y = made[y]
                else:
                    break
            else:
                continue
            made[token] = (rank, left, right)
            merges.append((left, right))
            break
        else:
            pairs = _odd_pairs(token, priority, made)
            merges += pairs
            if len(pairs) == 1:
                made[token] = (rank, *pairs[0])
                odd.add(token)
    return merges


def _odd_pairs(token: str, priority: Mapping[str, int], made: Mapping[str, object]) -> list[tuple[str, str]]:
    """For tokens that no pair of earlier ones leads to: nothing as a rule, because no text leads to them either."""
    pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
    pairs = [pair for pair in pairs if all(part in priority or part in made for part in pair)]
    if not pairs or len(token) > _LONGEST_REPLAYED:
        return pairs
    pair = last_pair(token, priority)
    return [pair] if pair in pairs else []


def last_pair(token: str, priority: Mapping[str, int]) -> tuple[str, str] | None:
    """By definition: encodes `token` by itself and returns the parts before the last step; None when more are left."""
    parts: Sequence[str] = token
    while len(parts) > 2:
        unions = list(map(str.__add__, parts, parts[1:]))
        best = min((priority[union] for union in unions if union in priority), default=None)
        if best is None:
            return None
        at = next(i for i, union in enumerate(unions) if priority.get(union) == best)
        parts = [*parts[:at], unions[at], *parts[at + 2 :]]
    return (parts[0], parts[1]) if len(parts) == 2 else None
