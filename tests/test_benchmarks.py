"""The benchmark's harness: its cases, its files and what is made of them. Nothing here looks at a time."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# The benchmark is run in the repository and not installed.
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    breakdown,
    cases,
    compare,
    denormals,
    floor,
    measure,
    readme,
    report,
    rivals,
    runner,
)
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.cases import Case  # noqa: E402
from benchmarks.contestants import Contestant, nn_lstm, roster, truth  # noqa: E402
from benchmarks.problem import LIMITS, Problem, worst_error  # noqa: E402
from benchmarks.records import Record, Spread, append, case_fields, load  # noqa: E402
from xlstm_fused.backends import cpu  # noqa: E402
from xlstm_fused.cells import CELLS  # noqa: E402


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def record(contestant="xlstm_fused cpu", ms=1.0, spread=0.01, ratio=None, case=Case(16, 64, 32, 32), **values):
    """A made-up measurement; ours unless a ratio is given."""
    def around(middle):
        return Spread.of((middle * (1 - spread), middle, middle * (1 + spread)))

    ok = values.get("status", "ok") == "ok"
    defaults = dict(
        case=case_fields(case), mode="training", contestant=contestant, precision="fp32", device="a processor",
        threads=2, status="ok", ours=ratio is None, version="1.0", ms=around(ms) if ok else None,
        ratios={"fp32": around(ratio)} if ratio else {}, commit="abc", dirty=False, source="def",
        time="2026-01-02T03:04:05Z", versions={"torch": "2.13.0"}, error=1e-7, error_of="output",
        gemm_gflops=100.0, gemm_share=0.5, traffic_bytes=10**6, copy_gbs=10.0, first_call_s=0.1, peak_bytes=2**20,
        flops=case.flops("training"))
    return Record(**defaults | values)


def grid():
    """Made-up measurements over H and B, one loss among them, one rival that is wrong and one that has failed."""
    found = []
    for H in (32, 64, 128):
        for B in (1, 8, 16):
            case = Case(B, 64, H, H)
            for mode in cases.MODES:
                ratio = 0.5 if (H, B) == (128, 16) else H / 16
                found += [record(case=case, mode=mode, ms=B * H / 100),
                          record("nn.LSTM", B * H / 100 * ratio, ratio=ratio, case=case, mode=mode),
                          record("Other", case=case, mode=mode, status="wrong", ours=False, reason="error 1 of output"),
                          record("Third", case=case, mode=mode, status="failed", ours=False, reason="RuntimeError: no")]
    return found


def test_names_tell_cases_apart():
    everything = {case for suite in cases.SUITES.values() for case in suite} | set(cases.QUICK)
    assert len({case.name for case in everything}) == len(everything)
    assert Case(1, 2, 3, 4, L=2, cell="slstm", N=2, bidirectional=True, ragged="packed", resets=0.1).name == (
        "B1 T2 I3 H4 L2 slstm N2 bidirectional packed resets")


def test_suites_have_what_was_promised():
    assert set(cases.CPU_SUITES) | set(cases.GPU_SUITES) | {"tiny", "stack"} == set(cases.SUITES)
    assert {(case.L, case.H, case.N, case.T) for case in cases.STACK} == {(12, 512, 4, 128)}
    assert {(case.H, case.B) for case in cases.GPU_GRID} == {
        (H, B) for H in (64, 128, 256, 512, 768, 1024) for B in (1, 8, 16, 32, 64)}
    assert {case.T for case in cases.GPU_GRID} == {1024}
    every = [case for suite in cases.CPU_SUITES for case in cases.SUITES[suite]]
    assert {case.N for case in every if case.cell == "slstm"} == {1, 4, 8}
    assert {case.ragged for case in every} == {"", "packed", "padded"}
    for has in (lambda case: case.resets, lambda case: case.bidirectional, lambda case: case.T == 1 and case.state,
                lambda case: case.T == 65536, lambda case: case.L == 2):
        assert any(map(has, every))
        assert has(Case(1, 65536, 1, 1)) or any(map(has, cases.QUICK))
    assert cases.select(["cpu-grid", "basic"], "B16 T256 I256 H256") == [Case(16, 256, 256, 256)]


def test_lengths_and_operations_of_a_ragged_case():
    case = Case(4, 8, 3, 5, ragged="packed")
    assert case.lengths == [8, 6, 4, 2]
    assert case.flops("inference") == 2 * 20 * 4 * 5 * (3 + 5)
    assert Case(4, 8, 3, 6, L=2, N=3, bidirectional=True).flops("training") == 3 * 2 * 32 * 2 * 4 * 6 * (3 + 2 + 12 + 2)


def test_floor_is_the_longer_of_products_and_traffic():
    case = Case(4, 8, 3, 5, ragged="packed")
    parameters = 4 * 5 * (3 + 5 + 2)
    assert floor.traffic(case, "inference", 4) == 4 * (20 * (3 + 5) + parameters)
    assert floor.traffic(case, "training", 2) == 2 * (3 * 20 * (3 + 5) + 2 * parameters)
    operations, moved = case.flops("training"), floor.traffic(case, "training", 4)
    # In ms, at 1e9 operations, or bytes, per second.
    assert floor.floor_ms(case, "training", 4, "cpu", 1.0, 1e9) == pytest.approx(operations / 1e6)
    assert floor.floor_ms(case, "training", 4, "cpu", 1e9, 1.0) == pytest.approx(moved / 1e6)


def test_floor_of_a_gpu_has_the_steps_and_is_of_one_device():
    case = Case(16, 1024, 256, 256)
    forward, backward = floor.STEP_US[256, 16]
    assert floor.floor_ms(case, "inference", 2, "NVIDIA H200", 1e9, 1.0) == pytest.approx(1.024 * forward, rel=1e-4)
    # The input product has half of the operations; training has three of it, and one for the gradient of R.
    assert floor.floor_ms(case, "training", 2, "NVIDIA H200", 1.0, 1.0) == pytest.approx(
        1.024 * (forward + backward) + 4 * case.flops("inference") / 2e6)
    for other in (replace(case, bidirectional=True), replace(case, H=200)):
        assert floor.floor_ms(other, "inference", 2, "NVIDIA H200", 1.0, 1.0) is None
    assert floor.floor_ms(case, "inference", 4, "NVIDIA H200", 1.0, 1.0) is None
    assert floor.floor_ms(case, "inference", 2, "NVIDIA A100", 1.0, 1.0) is None


def test_records_survive_their_file(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    first, second = record(), record("nn.LSTM", 2.0, ratio=2.0, kernels=["90% 1x some_kernel"])
    for each in (first, second, again := replace(first, ms=Spread.of([3.0]))):
        append(path, each)
    assert load([path]) == [again, second]
    assert again.shape == Case(16, 64, 32, 32)
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("change, message", [
    ({"schema": 2}, "schema: expected 1, got 2"), ({"status": "fine"}, "got 'fine'"), ({"ms": None}, "ms: expected"),
    ({"ms": {"p50": 1}}, "expected p20, p50 and p80"), ({"colour": "red"}, "unknown fields: colour")])
def test_what_is_no_record_is_an_error_that_names_the_line(tmp_path, change, message):
    path = tmp_path / "results.jsonl"
    lines = [record().to_json(), json.dumps(json.loads(record().to_json()) | change)]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"results.jsonl, line 2: .*{re.escape(message)}"):
        load([path])


def test_every_field_is_documented():
    rows = [line.split("|")[1] for line in (ROOT / "benchmarks" / "README.md").read_text().splitlines()
            if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {each.name for each in fields(Record)}


@pytest.mark.parametrize("before, after, verdict", [
    (record(ms=1.0), record(ms=1.1), "slower"),
    (record(ms=1.1), record(ms=1.0), "faster"),
    (record(ms=1.0), record(ms=1.02, spread=0.001), "same"),
    (record(ms=1.0, spread=0.2), record(ms=1.1, spread=0.2), "same"),
    (record(), record(status="wrong"), "broken"),
    (record(status="failed"), record(), "repaired"),
    (record(), None, "missing"),
    (None, record(), "new")])
def test_verdict(before, after, verdict):
    assert compare.judge(before, after).verdict == verdict


def test_compare_by_command(tmp_path, capsys):
    old, new, elsewhere = tmp_path / "old.jsonl", tmp_path / "new.jsonl", tmp_path / "elsewhere.jsonl"
    slow = Case(1, 2, 3, 4)
    append(old, record(case=slow))
    append(old, record("nn.LSTM", 1.0, ratio=1.0))
    append(old, record())
    append(new, record(case=slow, ms=1.5, gemm_gflops=50.0))
    append(new, record("nn.LSTM", 9.0, ratio=1.0))
    append(new, record())
    append(elsewhere, record(device="another processor"))
    assert main(["compare", str(old), str(new)]) == 1
    printed = capsys.readouterr().out
    assert "1 slower, 1 same" in printed and slow.name in printed and "+50.0%" in printed
    assert main(["compare", str(old), str(old)]) == 0
    assert main(["compare", str(old), str(elsewhere)]) == 2
    assert compare.machine_change([record()], [record(gemm_gflops=50.0)]) == -0.5
    assert main(["compare", str(old), str(tmp_path / "nowhere.jsonl")]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_report_has_every_table_and_picture(tmp_path):
    path = report.write(grid(), tmp_path / "report")
    text = path.read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert [name.split("-", 1)[1] for name in pictures] == [
        "ratios.png", "step-time-H.png", "step-time-B.png", "roofline.png", "heat-nn-lstm-fp32-fp32.png"]
    for name in pictures:
        assert (path.parent / name).read_bytes().startswith(b"\x89PNG")
    assert "| B16 T64 I128 H128 | training | 20.5 | 0.5x | wrong | failed |" in text
    assert "- Other fp32: wrong (error 1 of output): B1 T64 I32 H32, inference;" in text
    assert "commit abc; torch 2.13.0; 2026-01-02" in text


def test_report_of_one_measurement_has_no_picture_but_the_roofline(tmp_path):
    assert re.findall(r"!\[(.*?) on ", report.write([record()], tmp_path).read_text()) == ["roofline"]


def test_readme_matches_the_committed_results():
    text = readme.README.read_text()
    assert readme.rewritten(text, readme.committed()) == text, "run python -m benchmarks readme"


def test_readme_without_results_says_so_and_with_results_shows_losses():
    assert readme.section([]) == readme.NONE
    text = readme.section(grid())
    assert "| B16 T64 I128 H128, fp32 | nn.LSTM | 20.5 ms | **0.50x** | 20.5 ms | **0.50x** |" in text
    # Eight ratios of 2, 4 and 8, and the loss of 0.5.
    mean = (2**3 * 4**3 * 8**2 * 0.5) ** (1 / 9)
    assert f"| nn.LSTM fp32 | ours fp32 | training | 9 | {mean:.3g}x | 0.5x (B16 T64 I128 H128) | 1 |" in text
    assert "Third fp32: failed (RuntimeError: no)" in text
    frame = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter"
    assert readme.rewritten(frame, []) == f"before\n{readme.BEGIN}\n{readme.NONE}\n{readme.END}\nafter"
    with pytest.raises(ValueError, match="expected one"):
        readme.rewritten("no markers", [])


def test_race_runs_rival_and_ours_in_turns():
    class Clock:
        def __init__(self):
            self.log = []

        def estimate(self, run):
            return run()

        def block(self, run, calls, seconds):
            self.log.append((run(), calls))
            return [run()]

    clock, runs = Clock(), {"ours": lambda: 0.01, "rival": lambda: 0.02, "slow": lambda: 10.0}
    result = measure.race(clock, runs, [("rival", "ours"), ("slow", "ours")], measure.Effort(0.4, 4))
    assert [seconds for seconds, _ in clock.log] == [0.02, 0.01, 10, 0.01] * 3 + [0.02, 0.01]
    assert dict(clock.log) == {0.01: 10, 0.02: 5, 10.0: 1}
    assert result.ratios == {("rival", "ours"): [2] * 4, ("slow", "ours"): [1000] * 3}


def test_who_is_wrong_or_fails_is_recorded_and_not_timed(tmp_path):
    def wrong(problem, precision):
        ready = nn_lstm(problem, precision)
        right = ready.forward
        ready.forward = lambda: (right()[0] * 1.01, None)
        return ready

    def broken(problem, precision):
        raise RuntimeError("no such kernel in /some/where/file.cu")

    everything = [each for each in roster("cpu") if each.name in ("xlstm_fused reference", "nn.LSTM")]
    everything += [Contestant(name, "torch", build, lambda case: None) for name, build in
                   (("wrong", wrong), ("broken", broken))]
    options = runner.Options("cpu", [1], ["fp32"], measure.Effort(0.001, 3), check_only=True, out=tmp_path / "out")
    found = {(each.contestant, each.mode): each for each in
             runner.Runner(options, everything).run([Case(3, 5, 4, 8)])}
    for mode in cases.MODES:
        assert {name: found[name, mode].status for name in ("xlstm_fused reference", "nn.LSTM", "wrong", "broken")} == {
            "xlstm_fused reference": "checked", "nn.LSTM": "checked", "wrong": "wrong", "broken": "failed"}
        assert found["broken", mode].reason == "RuntimeError: no such kernel in .../file.cu"
        assert 0.009 < found["wrong", mode].error < 0.011
    assert {each.key: each for each in load([options.out])} == {each.key: each for each in found.values()}
    assert runner.Runner(options, everything).run([Case(3, 5, 4, 8)]) == []


@pytest.mark.parametrize("case", cases.TINY, ids=lambda case: case.name)
def test_everyone_agrees_on_every_kind_of_case(case):
    options = runner.Options("cpu", [1], ["fp32"], measure.Effort(0.001, 3), without=["compiled"], check_only=True)
    found = runner.Runner(options).run([case])
    assert {(each.contestant, each.mode) for each in found} >= {("xlstm_fused reference", mode) for mode in cases.MODES}
    assert {each.status for each in found} == {"checked"}, [(each.contestant, each.reason) for each in found]


def test_a_run_by_command_writes_results_and_resumes(tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    command = ["cpu", "--suite", "tiny", "--case", "B3 T5 I4 H8 state", "--threads", "1", "--seconds", "0.001",
               "--only", "nn.LSTMCell", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "B3 T5 I4 H8 state" in printed and "report" in printed
    found = load([out])
    assert {each.status for each in found} == {"ok"}
    assert all(each.ratios["fp32"]["p50"] > 0 for each in found if not each.ours)
    assert len({each.commit for each in found}) == 1 and all(each.source for each in found)
    assert all(each.copy_gbs > 0 and each.floor_share == pytest.approx(each.floor_ms / each.ms["p50"], abs=1e-4)
               for each in found)
    size = out.stat().st_size
    assert main(command) == 0 and out.stat().st_size == size


def test_haste_gets_its_own_layout(monkeypatch):
    class LSTM(torch.nn.Module):
        """haste's LSTM as its documentation states it: gates i, g, f, o, and matrices (in, out)."""

        def __init__(self, I, H):
            super().__init__()
            for name, shape in (("kernel", (I, 4 * H)), ("recurrent_kernel", (H, 4 * H)), ("bias", (4 * H,))):
                setattr(self, name, torch.nn.Parameter(torch.empty(shape)))

        def forward(self, input):
            h = c = input.new_zeros(input.shape[1], self.recurrent_kernel.shape[0])
            outputs = []
            for x in input:
                i, g, f, o = (x @ self.kernel + h @ self.recurrent_kernel + self.bias).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                outputs.append(h)
            return torch.stack(outputs), (h.unsqueeze(0), c.unsqueeze(0))

    monkeypatch.setitem(sys.modules, "haste_pytorch", SimpleNamespace(LSTM=LSTM))
    problem = Problem(Case(3, 5, 4, 8), "cpu")
    error, of = worst_error(rivals.haste(problem, "fp32").results("training"), truth(problem))
    assert error < LIMITS["fp32"], of


def test_pytest_benchmark_runs_the_quick_cases():
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-k", "state and inference",
               "-p", "no:cacheprovider", "--benchmark-disable"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and re.search(r"[1-9] passed", result.stdout), result.stdout + result.stderr


@pytest.mark.parametrize("options, message", [
    (["cpu", "--suite", "all"], "--suite: expected some of cpu-grid"), (["cpu", "--threads", "many"], "--threads"),
    (["cpu", "--precision", "fp8"], "--precision"), (["cpu", "--case", "H7777"], "no case's name contains 'H7777'"),
    (["gpu", "--minutes", "0.5", "--out", "nowhere"], "--minutes: expected more than 1")])
def test_mistakes_are_one_line_and_status_2(capsys, options, message):
    assert main(options) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith("error: ") and errors.count("\n") == 1


def test_breakdown_adds_up_what_operators_belong_to():
    assert breakdown.part_of(["aten::copy_", "aten::addmm", "aten::linear"]) == breakdown.INPUT
    assert breakdown.part_of(["aten::mm", "AddmmBackward0"]) == breakdown.WEIGHTS
    assert breakdown.part_of(["aten::empty", "xlstm_fused::backward", "RecurrenceBackward"]) == breakdown.BACKWARD
    assert breakdown.part_of(["aten::empty", "xlstm_fused::inference_from_input"]) == breakdown.LAYER
    assert breakdown.part_of(["xlstm_fused::matmul", "ForwardFromInputBackward"]) == breakdown.WEIGHTS
    assert breakdown.part_of(["aten::cat"]) == breakdown.COPIES
    for mode, precision, expected in (
            ("training", "fp32", {breakdown.LAYER, breakdown.BACKWARD, breakdown.WEIGHTS}),
            ("inference", "fp32", {breakdown.LAYER}), ("inference", "bf16", {breakdown.INPUT, breakdown.FORWARD})):
        measured = breakdown.measure(Case(3, 7, 4, 8), mode, precision, 1)
        if measured is None:
            pytest.skip("no fused backend for the CPU here")
        total, parts, phases = measured
        assert total > 0
        kernels = {breakdown.LAYER, breakdown.FORWARD, breakdown.BACKWARD}
        assert set(phases) == expected & kernels
        for kernel, each in phases.items():
            assert set(each) == set(cpu._cpu.phases()) and 0 < sum(each.values()) <= 1.5 * parts[kernel]
            assert each["recurrent product"] > 0 and each["cell"] > 0
            assert (each["input product"] > 0) == (kernel == breakdown.LAYER)
        assert {name for name, ms in parts.items() if ms > 0} - {breakdown.COPIES} == expected
    assert cpu.seconds is None


def test_denormals_says_a_ratio_for_every_cell(capsys, monkeypatch):
    monkeypatch.setattr(denormals, "LIMIT", float("inf"))
    sizes = ["--batch=2", "--steps=3", "--input=4", "--hidden=5", "--seconds=0.0001"]
    assert main(["denormals", *sizes]) == 0
    assert re.findall(r"^(\w+): .* takes \d+\.\d\d times", capsys.readouterr().out, re.MULTILINE) == list(CELLS)
    monkeypatch.setattr(denormals, "LIMIT", 0)
    assert main(["denormals", *sizes]) == 1


def test_denormals_are_subnormal_in_every_step():
    sizes = SimpleNamespace(batch=2, steps=3, input=4, hidden=5)
    layer, x, hx, _ = denormals.problem("lstm", denormals.SUBNORMAL, sizes)
    output, (_, c) = layer(x, hx)
    for value in (x, *hx, output, c):
        assert 0 < value.abs().max() < torch.finfo(torch.float32).tiny
