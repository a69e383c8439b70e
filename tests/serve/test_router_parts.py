"""What a router is made of: whom it chooses, how it sums, what it passes on, and adapters for all of its processes."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacheng.serve.affinity import BLOCK_CHARS, Affinity, chain
from dacheng.serve.everywhere import LOAD, UNLOAD, Everywhere
from dacheng.serve.fleet_metrics import merged
from dacheng.serve.router import GAP, Passage, Router
from dacheng.serve.upstream import Lost, Unreachable, Upstream

pytest.importorskip("prometheus_client")

TEXT = "the cat sat on the mat, " * 40


def chat(*texts, **more):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": t} for t in texts], **more}).encode()


@given(st.integers(0, 6), st.text(max_size=40))
def test_prompts_share_as_many_hashes_as_they_begin_alike(blocks, tail):
    first = chain(json.dumps({"model": "m", "prompt": TEXT}).encode(), "")
    second = chain(
        json.dumps({"model": "m", "prompt": TEXT[: blocks * BLOCK_CHARS] + "§" + tail + "x" * 300}).encode(), ""
    )
    alike = sum(a == b for a, b in zip(first, second))
    assert alike == blocks and first[:blocks] == second[:blocks]


def test_turns_of_one_conversation_are_alike_and_tenants_models_and_salts_are_not():
    one, two = chain(chat(TEXT), "t"), chain(chat(TEXT, "more " * 50), "t")
    assert one and two[: len(one) - 1] == one[:-1]
    others = [chain(chat(TEXT), "u"), chain(chat(TEXT, model="n"), "t"), chain(chat(TEXT, cache_salt="s"), "t")]
    assert all(other[0] != one[0] for other in others)
    for nothing in (b"", b"{", b"[1]", b'{"prompt": 5}', b'{"prompt": [1, 2]}', b"[" * 100_000, chat("short")):
        assert chain(nothing, "") == []


def test_the_table_is_bounded_and_forgets_the_oldest():
    table = Affinity(most=10)
    for k in range(20):
        table.note([b"%d" % k], k, range(20))
    assert len(table) == 10
    assert table.shares([b"5"], range(20)) == {} and table.shares([b"15", b"x"], range(20)) == {15: 0.5}
    table.note([b"15"], 3, [3])  # 15 is no more
    assert table.shares([b"15"], range(20)) == {3: 1.0}


def worker(number, load=0, failures=0):
    return SimpleNamespace(id=number, slot=number, load=load, failures=failures, chosen=0, ready=True,
                           key="k" * 20, address=("127.0.0.1", 1))  # fmt: skip


class Some:
    def __init__(self, *workers):
        self.ready = self.slots = list(workers)
        self.restarts = 0

    def others(self, tried):
        return [w for w in self.ready if w.id not in tried]


def passage(text=""):
    hashes = chain(json.dumps({"prompt": text}).encode(), "")
    return Passage("POST", b"/v1/completions", "/v1/completions", [], b"", hashes, "r")


def chosen(router, asked, tried=()):
    return asyncio.run(router._choose(asked, set(tried), wait=False))


def test_the_least_busy_is_chosen_and_one_that_knows_the_prompt_may_be_busier():
    first, second = worker(1), worker(2)
    router = Router(Some(first, second))
    turns = [chosen(router, passage()).id for _ in range(6)]
    assert sorted(turns) == [1, 1, 1, 2, 2, 2]  # by turns where they are as busy
    home = chosen(router, passage(TEXT))
    other = second if home is first else first
    for load in (1, 2, 3):
        home.load = load
        assert chosen(router, passage(TEXT)) is home
    home.load = int(GAP) + 1
    assert chosen(router, passage(TEXT)) is other  # and from now on both know it
    home.load = 0
    other.load = 1
    assert chosen(router, passage(TEXT)) is home
    other.load, home.failures = 9, 1
    assert chosen(router, passage(TEXT)) is other
    assert chosen(router, passage(TEXT), [other.id]) is home
    assert chosen(router, passage(TEXT), [1, 2]) is None


def families(text):
    from prometheus_client.parser import text_string_to_metric_families

    return list(text_string_to_metric_families(text))


def test_counts_are_summed_gauges_labelled_and_those_that_are_gone_still_count():
    text = (
        '# TYPE n_total counter\nn_total{{m="x"}} {0}\n# TYPE n_created gauge\nn_created{{m="x"}} 1e9\n'
        '# TYPE h histogram\nh_bucket{{le="+Inf"}} {0}\nh_count {0}\nh_sum {0}.5\n# TYPE g gauge\ng{{m="x"}} {0}\n'
    )
    found = merged(
        [("0", families(text.format(3))), ("1", families(text.format(4)))],
        {("n_total", (("m", "x"),)): 100.0, ("n_total", (("m", "y"),)): 5.0},
    )
    samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for family in found for s in family.samples}
    assert samples[("n_total", (("m", "y"),))] == 5
    assert samples[("n_total", (("m", "x"),))] == 107 and samples[("h_sum", ())] == 8.0
    assert samples[("g", (("m", "x"), ("worker", "0")))] == 3 and samples[("g", (("m", "x"), ("worker", "1")))] == 4
    assert not any("created" in name for name, _ in samples)


def test_upstream_says_whether_it_was_asked():
    async def serve(answer):
        async def handle(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()
            found = await Upstream.ask(address, "GET", b"/", [], b"")
            try:
                return found.status, await found.whole()
            finally:
                found.close()

    good = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert asyncio.run(serve(good)) == (200, b"abcde")
    for broken in (good[:-5], good[:30], b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"nonsense\r\n\r\n"):
        with pytest.raises(Lost) as caught:
            asyncio.run(serve(broken))
        assert not isinstance(caught.value, Unreachable)
    with pytest.raises(Unreachable):
        asyncio.run(Upstream.ask(("127.0.0.1", 1), "GET", b"/", [], b""))


def test_an_adapter_is_loaded_everywhere_or_nowhere_and_again_in_those_that_come_later(monkeypatch):
    from dacheng.serve import everywhere

    told: list[tuple[int, str, str]] = []
    refuse = {2}

    async def post(worker, path, headers, body):
        told.append((worker.id, path, json.loads(body)["lora_name"]))
        status = 400 if worker.id in refuse and path == LOAD else 200
        return SimpleNamespace(status=status), b"said"

    monkeypatch.setattr(everywhere, "_post", post)
    both = Everywhere(Some(worker(1), worker(2)))

    def ask(path, name):
        return asyncio.run(both.ask(path, [], json.dumps({"lora_name": name}).encode()))[0].status

    assert ask(LOAD, "a") == 400 and told == [(1, LOAD, "a"), (2, LOAD, "a"), (1, UNLOAD, "a")]
    refuse.clear()
    assert ask(LOAD, "a") == ask(LOAD, "b") == ask(UNLOAD, "a") == ask(UNLOAD, "from the start") == 200
    told.clear()
    asyncio.run(both.repeat(worker(3)))
    assert told == [(3, LOAD, "b"), (3, UNLOAD, "from the start")]
