import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dacheng import ledger as ledger_module
from dacheng import meters
from dacheng.errors import DachengError, UsageError
from dacheng.ledger import Ledger, Prices, read_entries
from dacheng.records import Drops

STATED = Prices(
    power_per_kwh=0.36, watts=100.0, hardware_per_hour=3.6, labour_per_hour=40.0, currency="EUR", assumed=()
)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_entry_holds_what_was_added_and_what_was_measured(tmp_path):
    ledger = Ledger(tmp_path / "deep" / "ledger.jsonl", STATED)
    drops = Drops()
    drops.keep(10)
    drops.drop("too long", 99, "doc-7")
    with ledger.measure("train", seed=3) as entry:
        entry.add(tokens=100, flops=1e9, steps=1)
        entry.add(tokens=28, flops=1e9, drops=drops, steps=1, labour_hours=0.5)
        entry.add(drops={"dropped": {"too long": 2, "empty": 1}})
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
    (line,) = lines(ledger.path)
    assert (line["stage"], line["status"], line["labels"]) == ("train", "done", {"seed": 3})
    assert (line["tokens"], line["flops"], line["numbers"]) == (128, 2e9, {"steps": 2})
    assert line["drops"]["dropped"] == {"too long": 3, "empty": 1}
    assert line["drops"]["examples"] == {"too long": "doc-7"}
    assert line["wall_s"] >= 0.05
    assert line["cpu_s"] >= 0.05
    assert line["peak_bytes"] > 10_000_000
    if line["joules_kind"] == "estimated":
        assert line["joules"] == pytest.approx(100.0 * line["wall_s"])
    assert line["money"]["power"] == pytest.approx(line["joules"] * 1e-7)
    assert line["money"]["hardware"] == pytest.approx(line["wall_s"] * 1e-3)
    assert line["money"]["labour"] == 20.0
    assert line["currency"] == "EUR"


def test_children_cpu_and_memory_count():
    ledger = Ledger(None)
    code = "import time\nx = bytearray(90_000_000)\nwhile time.process_time() < 0.15: pass"
    with ledger.measure("stage"):
        subprocess.run([sys.executable, "-c", code], check=True)
    (entry,) = ledger.entries()
    assert entry["cpu_s"] >= 0.14
    assert entry["peak_bytes_children"] >= 90_000_000


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("bad"), "failed"), (KeyboardInterrupt(), "interrupted"), (SystemExit(1), "interrupted")],
)
def test_failure_and_interruption_are_written_and_passed_on(error, status):
    ledger = Ledger(None)
    with pytest.raises(type(error)), ledger.measure("stage") as entry:
        entry.add(tokens=5)
        raise error
    (line,) = ledger.entries()
    assert (line["status"], line["tokens"]) == (status, 5)
    assert line["error"].startswith(type(error).__name__)


def test_nested_entries_are_not_counted_twice():
    ledger = Ledger(None, STATED)
    with ledger.measure("life") as outer:
        outer.add(tokens=1)
        for _ in range(2):
            with ledger.measure("train") as entry:
                entry.add(tokens=10, flops=5.0, steps=1)
                with ledger.measure("evaluate") as inner:
                    inner.add(tokens=100, labour_hours=0.25)
                    time.sleep(0.02)
    entries = {entry["id"]: entry for entry in ledger.entries()}
    total = ledger.totals()
    assert len(entries) == 5
    assert total["entries"] == 1
    (life,) = [entry for entry in entries.values() if entry["stage"] == "life"]
    assert total["wall_s"] == life["wall_s"]
    assert total["joules"] == life["joules"]
    assert total["money"]["hardware"] == pytest.approx(life["wall_s"] * 1e-3)
    assert (total["tokens"], total["flops"], total["numbers"]) == (221, 10.0, {"steps": 2})
    assert (total["labour_hours"], total["money"]["labour"]) == (0.5, 20.0)
    train = ledger.totals("train")
    assert (train["entries"], train["tokens"]) == (2, 220)  # what was nested in it included
    assert ledger.totals("evaluate")["tokens"] == 200
    assert ledger.totals("evaluate")["money"]["labour"] == 20.0
    assert ledger.totals("evaluate")["wall_s"] <= train["wall_s"] <= total["wall_s"]
    assert ledger.totals("nothing")["entries"] == 0


def test_a_recursive_stage_counts_its_outermost_only():
    ledger = Ledger(None)
    with ledger.measure("data"), ledger.measure("filter"), ledger.measure("data") as innermost:
        innermost.add(tokens=7)
    outer = next(entry for entry in ledger.entries() if entry["parent"] is None)
    assert ledger.totals("data")["wall_s"] == outer["wall_s"]
    assert ledger.totals("data")["tokens"] == 7


def test_entries_closed_out_of_order_leave_nothing_open():
    ledger = Ledger(None)
    first, second = ledger.measure("first"), ledger.measure("second")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    with ledger.measure("third"):
        pass
    assert [entry["parent"] is None for entry in ledger.entries()] == [True, False, True]


def test_numbers_of_numpy_are_numbers():
    ledger = Ledger(None)
    with ledger.measure("a") as entry:
        entry.add(tokens=np.int64(3), flops=np.float32(2), steps=np.int32(1), loss=np.float64(0.5))
    (line,) = ledger.entries()
    assert json.loads(json.dumps(line))["numbers"] == {"steps": 1, "loss": 0.5}
    assert (line["tokens"], line["flops"]) == (3, 2.0)


def test_two_ledgers_do_not_adopt_each_others_entries():
    first, second = Ledger(None), Ledger(None)
    with first.measure("a"), second.measure("b"), first.measure("c"):
        pass
    assert [entry["parent"] for entry in second.entries()] == [None]
    a, c = first.entries()
    assert c["parent"] == a["id"]


def test_reconcile_splits_the_wall_meter():
    ledger = Ledger(None)
    began = time.perf_counter()
    with ledger.measure("a"), ledger.measure("inner"):
        time.sleep(0.05)
    time.sleep(0.03)
    with ledger.measure("b"):
        time.sleep(0.02)
    wall = time.perf_counter() - began
    split = ledger.reconcile(wall)
    assert split["attributed"] + split["unattributed"] == pytest.approx(wall)
    assert split["attributed"] == pytest.approx(ledger.totals()["wall_s"], abs=2e-3)
    assert 0.029 <= split["unattributed"] <= 0.03 + wall - 0.1 + 5e-3
    assert split["overlapping"] == pytest.approx(0.0, abs=2e-3)


def test_entries_of_threads_overlap_and_are_attributed_once():
    ledger = Ledger(None)

    def work():
        with ledger.measure("worker"):
            time.sleep(0.1)

    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    split = ledger.reconcile(wall)
    assert split["attributed"] <= wall + 2e-3
    assert split["overlapping"] > 0.1


def test_reconcile_leaves_out_earlier_sessions_of_the_file(tmp_path):
    with Ledger(tmp_path / "l.jsonl").measure("before"):
        time.sleep(0.05)
    later = Ledger(tmp_path / "l.jsonl")
    with later.measure("now"):
        pass
    assert later.totals()["entries"] == 2
    assert later.reconcile(1.0)["attributed"] < 0.04


WRITE = """
import sys
from dacheng.ledger import Ledger
ledger = Ledger(sys.argv[1])
for index in range(40):
    with ledger.measure("process", text="x" * 3000) as entry:
        entry.add(tokens=index)
"""


@pytest.mark.process
def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "l.jsonl"
    workers = [subprocess.Popen([sys.executable, "-c", WRITE, str(path)]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    entries, damage = read_entries(path)
    assert (len(entries), damage) == (120, [])
    assert Ledger(path).totals()["tokens"] == 3 * sum(range(40))


@pytest.mark.process
def test_kill_9_keeps_finished_entries_and_the_last_heartbeat(tmp_path):
    path = tmp_path / "l.jsonl"
    code = (
        "import sys, time\nfrom dacheng import ledger\nledger.HEARTBEAT_S = 0.0\nl = ledger.Ledger(sys.argv[1])\n"
        "with l.measure('first') as e: e.add(tokens=3)\n"
        "with l.measure('second') as e:\n  e.add(tokens=4)\n  e.add(tokens=5)\n"
        "  print('ready', flush=True)\n  time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    ledger = Ledger(path)
    assert ledger.totals()["tokens"] == 12
    assert ledger.totals()["statuses"] == {"done": 1, "running": 1}


def test_torn_last_line_is_reported_and_not_continued(tmp_path, caplog):
    ledger = Ledger(tmp_path / "l.jsonl")
    for name in "abc":
        with ledger.measure(name) as entry:
            entry.add(tokens=1)
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-40])
    assert ledger.totals()["tokens"] == 2
    assert ledger.totals()["damaged_lines"] == 1
    assert "torn" in ledger.damage[0]
    assert ":3:" in ledger.damage[0]
    with ledger.measure("d") as entry:
        entry.add(tokens=1)
    assert ledger.totals()["tokens"] == 3
    assert ledger.totals()["damaged_lines"] == 1
    assert "torn" in caplog.text


@pytest.mark.parametrize("noise", [b"[]\n", b"{}\n", b"\xff\xfe\n", b"nonsense\n", b"[" * 100_000 + b"\n", b"\n\n"])
def test_altered_lines_do_not_stop_the_reading(noise, tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl")
    with ledger.measure("a") as entry:
        entry.add(tokens=1)
    ledger.path.write_bytes(noise + ledger.path.read_bytes() + noise)
    assert ledger.totals()["tokens"] == 1
    assert len(ledger.damage) == (0 if not noise.strip() else 2)


def test_a_line_with_a_wrong_type_is_damage(tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl")
    with ledger.measure("a"):
        pass
    line = lines(ledger.path)[0]
    ledger.path.write_text(
        "".join(json.dumps({**line, "id": k, k: [1]}) + "\n" for k in ("wall_s", "time", "money", "parent"))
    )
    assert ledger.totals()["entries"] == 0
    assert len(ledger.damage) == 4


def test_child_of_a_killed_parent_stands_alone(tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl")
    with ledger.measure("outer"), ledger.measure("inner") as entry:
        entry.add(tokens=9)
    inner = next(line for line in lines(ledger.path) if line["stage"] == "inner")
    ledger.path.write_text(json.dumps(inner) + "\n")
    assert (ledger.totals()["tokens"], ledger.totals()["entries"]) == (9, 1)


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), True, "many", None])
def test_a_figure_that_is_no_number_is_refused(figure):
    with pytest.raises(UsageError, match="steps"), Ledger(None).measure("a") as entry:
        entry.add(steps=figure)


def test_own_fields_closed_entries_and_unwritable_values_are_refused():
    ledger = Ledger(None)
    with ledger.measure("a") as entry:
        with pytest.raises(UsageError, match="wall_s"):
            entry.add(wall_s=1.0)
        with pytest.raises(UsageError, match="drops"):
            entry.add(drops={"reason": object()})
        entry.add(drops={"reason": 1})
        with pytest.raises(UsageError, match="reason"):
            entry.add(drops={"reason": {"nested": 1}})
    with pytest.raises(UsageError, match="closed"):
        entry.add(tokens=1)
    with pytest.raises(UsageError, match="labels"), ledger.measure("a", thing=object()):
        pass


def test_full_disk_names_the_remedy_and_does_not_hide_the_first_error(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "l.jsonl")
    monkeypatch.setattr(ledger_module.os, "write", lambda handle, data: 10)
    with pytest.raises(DachengError, match="free some space"), ledger.measure("a"):
        pass
    with pytest.raises(ValueError, match="first") as raised, ledger.measure("a"):
        raise ValueError("first")
    assert "was not written" in raised.value.__notes__[0]


def test_prices_from_a_file_say_what_they_assume(tmp_path, monkeypatch):
    path = tmp_path / "prices.yaml"
    path.write_text("watts: 45\ncurrency: CNY\nlabour_per_hour: 0\n")
    prices = Prices.load(path)
    assert (prices.watts, prices.currency, prices.labour_per_hour) == (45, "CNY", 0)
    assert prices.assumed == ("power_per_kwh", "hardware_per_hour")
    assert set(Prices.load(None).assumed) == {
        "power_per_kwh",
        "watts",
        "hardware_per_hour",
        "labour_per_hour",
        "currency",
    }
    monkeypatch.setenv("DACHENG_PRICES", str(path))
    assert Ledger(None).prices == prices


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("wats: 45", "did you mean watts"),
        ("watts: many", "zero or more"),
        ("watts: -1", "zero or more"),
        ("watts: .nan", "zero or more"),
        ("watts: true", "zero or more"),
        ("currency: 3", "a currency is a name"),
        ("- watts", "maps names"),
        ("", "maps names"),
        ("watts: [", "cannot be read"),
        ("1: 2", "unknown price"),
    ],
)
def test_wrong_price_files_are_refused(text, match, tmp_path):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UsageError, match=match):
        Prices.load(tmp_path / "p.yaml")


def test_missing_price_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        Prices.load(tmp_path / "none.yaml")


def test_two_currencies_are_not_added(tmp_path):
    path = tmp_path / "l.jsonl"
    for currency in ("EUR", "USD"):
        with Ledger(path, Prices(currency=currency)).measure("a"):
            pass
    total = Ledger(path).totals()
    assert total["money"] is None
    assert total["currency"] is None
    assert set(total["money_by_currency"]) == {"EUR", "USD"}


def counter(root, name, microjoules, wrap=1_000_000):
    (root / name).mkdir(exist_ok=True)
    for file, text in (("name", "package-0"), ("energy_uj", microjoules), ("max_energy_range_uj", wrap)):
        (root / name / file).write_text(f"{text}\n")


def test_rapl_counters_add_up_wrap_and_ignore_subdomains(tmp_path):
    counter(tmp_path, "intel-rapl:0", 900_000)
    counter(tmp_path, "intel-rapl:1", 100)
    counter(tmp_path, "intel-rapl:0:0", 5)
    meter = meters.EnergyMeter(tmp_path)
    assert meter.joules() == 0.0
    counter(tmp_path, "intel-rapl:0", 950_000)
    assert meter.joules() == pytest.approx(0.05)
    counter(tmp_path, "intel-rapl:0", 50_000)  # wrapped
    counter(tmp_path, "intel-rapl:1", 200)
    assert meter.joules() == pytest.approx(0.1501)
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("damaged")
    assert meter.joules() is None  # a part must not pass for the whole
    meter.stop()


def test_measured_joules_are_marked(tmp_path, monkeypatch):
    counter(tmp_path, "intel-rapl:0", 0, wrap=10**12)
    monkeypatch.setattr(ledger_module, "EnergyMeter", lambda: meters.EnergyMeter(tmp_path))
    ledger = Ledger(None, STATED)
    with ledger.measure("a"):
        counter(tmp_path, "intel-rapl:0", 7_200_000, wrap=10**12)
    total = ledger.totals()
    assert (total["joules"], total["joules_kind"]) == (7.2, "measured")
    assert total["money"]["power"] == pytest.approx(7.2e-7)
