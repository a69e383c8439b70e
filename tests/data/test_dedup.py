"""Exact deduplication, and the split that depends on content alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacheng.data.dedup import DedupConfig, deduplicate
from dacheng.data.split import SplitConfig, split_of
from dacheng.errors import DachengError, UsageError
from dacheng.records import Drops, Record

LONG = "All rights reserved by the owners of this page, whoever they may turn out to be in the end."


def run(texts: list[str], **options) -> tuple[list[str], Drops]:
    drops = Drops()
    records = (Record(id=str(i), text=text) for i, text in enumerate(texts))
    return [r.text or "" for r in drops.watch(deduplicate(records, DedupConfig(**options), drops))], drops


@pytest.mark.parametrize(
    ("ignore", "kept"),
    [("nothing", ["a b", "a  b\n", "A b", "c"]), ("whitespace", ["a b", "A b", "c"]), ("case", ["a b", "c"])],
)
def test_the_first_of_equal_documents_is_kept(ignore, kept):
    texts, drops = run(["a b", "a  b\n", "A b", "a b", "c"], ignore=ignore)
    assert texts == kept
    assert drops.dropped == {"duplicate": 5 - len(kept)} and drops.kept == len(kept)


def test_no_deduplication():
    assert run(["a", "a"], level="none")[0] == ["a", "a"]


@pytest.mark.parametrize(("level", "gap"), [("line", "\n"), ("paragraph", "\n\n")])
def test_repeated_boilerplate_goes_but_short_pieces_stay(level, gap):
    texts, drops = run(
        [gap.join(["one", LONG, "}"]), gap.join(["two", LONG, "}"]), LONG], level=level
    )  # fmt: skip
    assert texts == [gap.join(["one", LONG, "}"]), gap.join(["two", "}"])]
    assert drops.altered == {f"duplicate_{level}s_removed": 2}
    assert drops.dropped == {f"duplicate_{level}s_only": 1} and drops.examples[f"duplicate_{level}s_removed"] == "1"


def test_conversations_are_compared_by_what_is_said():
    def chat(ident: str, content: str) -> Record:
        return Record(id=ident, messages=[{"role": "user", "content": content}])

    drops = Drops()
    records = [chat("1", "hi"), chat("2", "hi"), chat("3", "ho")]
    assert [r.id for r in deduplicate(iter(records), DedupConfig(), drops)] == ["1", "3"]


def test_memory_is_bounded_by_an_error():
    with pytest.raises(DachengError, match="distinct texts") as caught:
        run([str(i) for i in range(5)], max_keys=4)
    assert caught.value.field == "dedup.max_keys"
    assert run(["a", "b", "a", "b"], max_keys=2)[0] == ["a", "b"]
    with pytest.raises(UsageError, match="positive"):
        DedupConfig(max_keys=0)


@given(st.lists(st.text(max_size=6), max_size=30), st.sampled_from(["document", "line", "paragraph"]))
def test_counts_add_up(texts, level):
    _, drops = run(texts, level=level, min_chars=1)
    assert drops.kept + sum(drops.dropped.values()) == len(texts)


# --- split ------------------------------------------------------------------------------------------------------------
def sides(texts: list[str], fraction: float, salt: str = "") -> dict[str, str]:
    config = SplitConfig(valid_fraction=fraction, salt=salt)
    return {text: split_of(Record(id=str(i), text=text), config) for i, text in enumerate(texts)}


@given(st.lists(st.text(), unique=True), st.lists(st.text()), st.randoms())
def test_the_side_does_not_change_with_order_or_additions(texts, more, random):
    before = sides(texts, 0.3)
    shuffled = texts + more
    random.shuffle(shuffled)
    after = sides(shuffled, 0.3)
    assert all(after[text] == before[text] for text in texts)


def test_the_share_is_as_asked_and_a_smaller_one_is_part_of_it():
    texts = [f"document {i}" for i in range(4000)]
    tenth, third = sides(texts, 0.1), sides(texts, 0.33)
    held = {t for t in texts if tenth[t] == "valid"}
    assert 340 < len(held) < 460  # 400 ± 3 standard deviations
    assert held <= {t for t in texts if third[t] == "valid"}
    salted = sides(texts, 0.1, salt="other")
    assert 15 < len(held & {t for t in texts if salted[t] == "valid"}) < 70  # independent: 40 expected
    assert set(sides(texts, 0).values()) == {"train"}


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_is_a_fraction(fraction):
    with pytest.raises(UsageError, match="fraction"):
        SplitConfig(valid_fraction=fraction)
