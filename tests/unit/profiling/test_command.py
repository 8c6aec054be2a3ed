"""What `vtcframe bench` tells is what was measured, and what was measured is the product; no test is about speed."""

import copy
import json
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from conftest import backbone
from vtcframe import EVit, FastV, VtcCls, adapter_for, compress
from vtcframe import bench as command
from vtcframe import measure as measuring
from vtcframe import subject as subjects
from vtcframe.bench import main
from vtcframe.config import UsageError
from vtcframe.costs import Answer, Batch, Run, Series, per_token, tables, verdict
from vtcframe.measure import answer, measure, operations, oracle, peak, prompts, see, stages, steps
from vtcframe.methods import DivPrune, RandomPruner
from vtcframe.passage import Passage, encode, prune
from vtcframe.shapes import SHAPES, Shape
from vtcframe.subject import built, depth, noise, published
from vtcframe.testing.backbones import SAMPLES, make_inputs
from vtcframe.testing.published import PUBLISHED, on_meta
from vtcframe.timing import Estimate, estimate, ratio, rounds, shuffled

CPU = torch.device("cpu")
TINY = {  # shapes of the tests' own backbones, which draw 4 x 4 tokens a tile
    "llava": Shape("tiny", "56 x 56", (1, 3, 56, 56), 16),
    "llava_next": Shape("tiny", "112 x 112", (1, 5, 3, 56, 56), 16 + 8 * 9, {"image_sizes": (112, 112)}),
    "qwen2_5_vl": Shape("tiny", "112 x 112", (64, 1176), 16, {"image_grid_thw": (1, 8, 8)}),
}


@pytest.fixture
def tiny(monkeypatch):
    """Let a tiny shape of a family stand for the published one that is run by default."""

    def stand(family):
        monkeypatch.setitem(SHAPES, command.DEFAULT_SHAPE, TINY[family])
        monkeypatch.setitem(PUBLISHED, "tiny", lambda: copy.deepcopy(backbone(family)[0].config))

    return stand


def asked(family, name="one"):
    model, processor = backbone(family)
    return model, dict(make_inputs(processor, SAMPLES[name]))


# How time is taken


def test_the_interval_is_that_of_the_sign_test():
    assert estimate(range(15)) == Estimate(7, 3, 11, pytest.approx(0.96484375))
    assert estimate([5, 4, 3, 2, 1]) == Estimate(3, 1, 5, pytest.approx(0.9375))


def test_ratios_are_of_the_same_round():
    assert ratio([2, 8, 30], [1, 2, 10]) == Estimate(3, 2, 4, pytest.approx(0.75))


def test_every_call_is_made_once_a_round_in_changing_order_behind_a_round_that_does_not_count():
    made = []
    found = shuffled({name: partial(lambda name: made.append(name) or len(made), name) for name in "abcd"}, 20)
    order = ["".join(made[i : i + 4]) for i in range(0, len(made), 4)]
    assert len(order) == 21
    assert all(sorted(one) == list("abcd") for one in order)
    assert len(set(order[1:])) > 5
    assert all(min(calls) > 4 and len(calls) == 20 for calls in found.values())


def test_cpu_and_wall_seconds_are_those_of_the_call(monkeypatch):
    clock = SimpleNamespace(cpu=0.0, wall=0.0)
    monkeypatch.setattr("vtcframe.timing.time.process_time", lambda: clock.cpu)
    monkeypatch.setattr("vtcframe.timing.time.perf_counter", lambda: clock.wall)

    def call():
        clock.cpu, clock.wall = clock.cpu + 2, clock.wall + 3

    assert rounds({"call": call}, 2, "cpu") == {"call": [(2, 3), (2, 3)]}


# What is run


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["one", "ragged several"])
def test_the_oracle_reads_as_many_tokens_as_the_pruned_prompt_has(family, name, monkeypatch):
    model, inputs = asked(family, name)
    case = compress(model, RandomPruner(), tokens=5)
    answer(case, inputs, 1)
    told, seen = prompts(inputs, case.last), []
    arrangement = case.adapter.arrange(inputs)
    evidence, left = encode(case.adapter, inputs, arrangement, case.plan, case.plan.needs)
    spliced = Passage(case.adapter, inputs, case.plan, evidence, *prune(case.plan, evidence, left)).given
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: seen.append(given) or generate(**given))
    out = oracle(model, inputs, told, 2)
    assert torch.equal(seen[0]["attention_mask"].cpu(), spliced["attention_mask"].cpu())
    assert not (seen[0]["input_ids"] == model.config.image_token_id).any()
    assert out.shape[1] == spliced["input_ids"].shape[1] + 2
    with torch.no_grad():
        apart = operations(partial(see, model, inputs)) + operations(partial(model.generate, **seen[0]))
        assert operations(partial(oracle, model, inputs, told, 2)) == apart


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_the_plain_encode_is_all_that_the_model_does_of_vision(family):
    model, inputs = asked(family)
    text = {"input_ids": inputs["input_ids"][:, -1:].expand_as(inputs["input_ids"])}
    text["attention_mask"] = inputs["attention_mask"]
    with torch.no_grad():
        whole, alone = (operations(partial(answer, model, given, 1)) for given in (inputs, text))
        assert operations(partial(see, model, inputs)) == whole - alone


def test_answers_have_their_length_even_where_the_model_would_end_at_once(llava, monkeypatch):
    model, inputs = asked("llava")
    width = inputs["input_ids"].shape[1]
    first = answer(model, inputs, 1)[0, width].item()
    monkeypatch.setattr(model.generation_config, "eos_token_id", first)
    assert answer(model, inputs, 4).shape[1] == width + 4
    assert answer(compress(model, VtcCls(), tokens=5), inputs, 4).shape[1] == width + 4


@pytest.mark.parametrize("pruner", [VtcCls(), DivPrune(), FastV(), EVit(blocks=(1,))], ids=str)
def test_the_steps_do_the_work_of_the_product_and_no_other(pruner):
    model, inputs = asked("llava")
    case = compress(model, pruner, tokens=5)
    with torch.no_grad(), measuring.FlopCounterMode(display=False) as counter:
        taken = steps(case, inputs, lambda: (counter.get_total_flops(),))
    product = operations(partial(answer, case, inputs, 1))
    assert product > 0
    assert sum(count for step, (count,) in taken.items() if step != "scoring") == product
    assert ("scoring" in taken) == isinstance(pruner, VtcCls | DivPrune)


def test_flops_are_those_of_the_products_and_attentions():
    model, inputs = asked("llava")
    inputs = {name: given[:1] for name, given in inputs.items()}
    length, patches, d, wide, depth = inputs["input_ids"].shape[1], 16, 32, 64, 4
    tower = depth * (4 * (patches + 1) * d * d + 2 * (patches + 1) * d * wide + 2 * (patches + 1) ** 2 * d)
    embedding, projector = patches * d * 3 * 14 * 14, 2 * patches * d * d
    layers = depth * (3 * length * d * d + 3 * length * d * wide + 2 * length**2 * d)  # half as many keys and values
    assert operations(partial(answer, model, inputs, 1)) == 2 * (embedding + tower + projector + layers + d * 200)


# What it is made of


def test_stages_are_differences_of_steps():
    taken = {"arrange": 1, "encode": 20, "scoring": 3, "prune": 5, "splice": 7, "prefill": 100}
    told = {"vision": 18, "capture": 3, "scoring": 3, "selection": 2, "splice": 7, "prefill": 100}
    assert stages(taken, 18) == told
    del taken["scoring"], told["scoring"]
    assert stages(taken, 18) == {**told, "selection": 5}
    assert stages({"vision": 18, "whole": 150}, 18) == {"vision": 18, "prefill": 132}


def test_measuring_pairs_every_run_with_the_untouched_one_and_its_oracle():
    model, inputs = asked("llava", "ragged several")
    pruners = VtcCls(), FastV(layer=2), EVit(blocks=(1,))
    batch = measure(model, [compress(model, pruner, tokens=4) for pruner in pruners], inputs, [1, 3], 2)
    vtc, fastv, evit = batch.pruned
    assert batch.size == len(inputs["input_ids"])
    assert [run.method for run in (batch.unpruned, *batch.pruned)] == ["unpruned", *map(str, pruners)]
    for run in (batch.unpruned, *batch.pruned):
        series = [one.times for one in run.answers] + list(run.stages.values())
        series += [one.oracle for one in run.answers if one.oracle]
        assert all(len(one.cpu) == len(one.wall) == 2 for one in series)
        assert [one.length for one in run.answers] == [1, 3]
        assert run.answers[0].peak_bytes is None
        assert sum(run.flops.values()) == run.answers[0].flops
    assert all(one.oracle for one in vtc.answers)
    assert not any(one.oracle for run in (batch.unpruned, fastv, evit) for one in run.answers)
    assert not vtc.no_oracle
    assert "lengths" in fastv.no_oracle
    assert "encoding" in evit.no_oracle
    before = batch.unpruned.tokens
    assert batch.unpruned.layer_tokens == [before] * 4
    assert vtc.layer_tokens == [vtc.tokens] * 4
    assert fastv.layer_tokens == [before] * 2 + [fastv.tokens] * 2
    assert vtc.kv_bytes < fastv.kv_bytes < batch.unpruned.kv_bytes
    assert vtc.answers[0].flops < fastv.answers[0].flops < batch.unpruned.answers[0].flops


def test_peak_memory_is_what_a_call_adds(monkeypatch):
    held = {"now": 100, "peak": 900}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.update(peak=held["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["peak"])
    assert peak(lambda: held.update(peak=max(held["peak"], 350)), torch.device("cuda")) == 250
    assert peak(lambda: None, CPU) is None


# What is told of it


def even(*seconds):
    return Series([float(x) for x in seconds], [2.0 * x for x in seconds])


def run(method, seconds, flops, limit=None, **stage):
    answers = [
        Answer(n, even(*(x * n for x in seconds)), flops, None, limit and even(*(x * n for x in limit))) for n in (1, 3)
    ]
    times = {name: even(*values) for name, values in stage.items()}
    return Run(method, 64, answers, times, {"vision": 7}, [64.0, 64.0, 9.0], 2**20, "" if limit else "no reason")


def cells(lines, table):
    """Head -> cell of each line below the head of the table so many-th."""
    starts = [i for i, line in enumerate(lines) if line.startswith("| ---")]
    rows = []
    for line in lines[starts[table] + 1 :]:
        if not line.startswith("|"):
            break
        rows.append(line.strip("| ").split(" | "))
    head = lines[starts[table] - 1].strip("| ").split(" | ")
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_tables_tell_speed_the_two_limits_and_stages():
    six = [6.0] * 6
    plain = run("unpruned", [12.0, 12, 12, 12, 12, 12], 600, vision=[1] * 6, prefill=[11] * 6)
    fast = run(
        *("Fast", six, 100, [5.4] * 6),
        **{"vision": [1] * 6, "capture": [-0.1] * 6, "scoring": [0.1] * 6, "selection": [0.2] * 6, "prefill": [4] * 6},
    )
    lines = tables(Batch(1, plain, [fast]), "cpu")
    whole, staged, sizes = (cells(lines, table) for table in range(3))
    assert [(row["answer"], row["run"]) for row in whole] == [(n, r) for n in "13" for r in ("unpruned", "Fast")]
    assert whole[1]["s"] == "6.000 [6.000, 6.000]"
    assert whole[3]["s"] == "18.000 [18.000, 18.000]"
    assert whole[1]["against unpruned"] == "faster: 2.00x [2.00, 2.00]"
    assert whole[1]["of the oracle"] == "0.900 [0.900, 0.900]"
    assert (whole[1]["FLOP bound"], whole[1]["of the bound"]) == ("6.00x", "0.33")
    assert staged[1]["capture ms"] == "-100.00"
    assert staged[1]["splice ms"] == staged[0]["capture ms"] == "-"
    assert staged[1]["token ms"] == "6000.00"
    assert staged[1]["judging, % of vision + prefill"] == "6.000 [6.000, 6.000]"
    assert staged[1]["until pruned / vision"] == "1.200 [1.200, 1.200]"
    assert sizes[1]["tokens a layer reads"] == "2 x 64, 1 x 9"
    assert (sizes[1]["KV MiB a sample"], sizes[1]["vision GFLOP"]) == ("1.0", "0.000")
    assert "No oracle of unpruned" in "".join(lines)  # wherever there is a reason
    assert cells(tables(Batch(1, plain, [fast]), "wall"), 0)[1]["s"] == "12.000 [12.000, 12.000]"


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        ([1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "faster: 1.45x [1.20, 1.70]"),
        ([0.9, 1.3, 1.4, 1.5, 1.6, 1.7], "not shown to be faster: 1.45x [0.90, 1.70]"),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.1], "not shown to be faster: 0.75x [0.50, 1.10]"),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.99], "slower: 0.75x [0.50, 0.99]"),
        ([1.2, 1.3, 1.4, 1.5, 1.6], "too few rounds to tell: 1.40x [1.20, 1.60]"),
    ],
)
def test_a_verdict_says_faster_only_where_the_interval_does(speeds, said):
    assert verdict(estimate(speeds)) == said


def test_a_token_takes_the_difference_of_answers_for_each_token_between():
    long, short = Answer(17, even(40, 50), 0, None), Answer(1, even(8, 2), 0, None)
    assert per_token([long, short]) == even(2, 3)
    assert per_token([short]) is None


# Whose costs


@pytest.mark.parametrize(
    ("name", "weights", "tokens", "layers"),
    [
        ("llava-1.5-7b", 7_063_427_072, 576, 32),
        ("llava-1.5-13b", 13_351_494_656, 576, 40),
        ("llava-next-7b", 7_063_431_168, 2880, 32),
        ("qwen2.5-vl-7b", 8_292_166_656, 576, 28),
    ],
)
def test_a_shape_has_the_published_weights_and_tokens(name, weights, tokens, layers):
    shape, model = SHAPES[name], on_meta(published(SHAPES[name]))
    assert sum(weight.numel() for weight in model.parameters()) == weights
    here = SimpleNamespace(config=model.config, base_model=model.base_model, dtype=torch.bfloat16, device=CPU)
    inputs, adapter = noise(shape, here, 2), adapter_for(model)
    assert adapter.arrange(inputs).layout.untouched.tolist() == [tokens] * 2
    assert len(adapter.llm_layers()) == layers


def test_every_shape_is_held_to_published_numbers():
    told = next(mark for mark in test_a_shape_has_the_published_weights_and_tokens.pytestmark)
    assert [row[0] for row in told.args[1]] == list(SHAPES)


def test_fewer_layers_are_the_first_ones_and_all_else_is_whole(tiny):
    tiny("qwen2_5_vl")
    shape = SHAPES[command.DEFAULT_SHAPE]
    few, every = (on_meta(published(shape, layers)) for layers in (2, None))
    assert len(adapter_for(few).llm_layers()) == 2
    assert len(few.config.get_text_config().layer_types) == 2
    gone = {name for name in every.state_dict() if ".language_model.layers.2." in name or ".layers.3." in name}
    assert set(every.state_dict()) - set(few.state_dict()) == {name for name in gone if "language_model" in name}


@pytest.mark.parametrize("family", TINY)
def test_random_weights_are_finite_and_buffers_those_of_an_ordinary_model(family, tiny):
    tiny(family)
    config = published(SHAPES[command.DEFAULT_SHAPE])
    ordinary = type(backbone(family)[0])(copy.deepcopy(config))
    model = built(config, torch.bfloat16, "eager", CPU)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert all(weight.isfinite().all() and weight.float().abs().max() < 10 for weight in model.parameters())
    assert all(weight.float().std() > 0 for weight in model.parameters() if weight.ndim > 1)
    mine, theirs = (dict(one.named_buffers()) for one in (model, ordinary))
    assert mine.keys() == theirs.keys()
    for name, buffer in mine.items():
        torch.testing.assert_close(buffer, theirs[name], check_dtype=False)


def test_as_many_layers_are_run_as_fit_in_two_thirds_of_the_memory(tiny, monkeypatch):
    tiny("llava")
    shape = SHAPES[command.DEFAULT_SHAPE]
    one, two = (sum(p.numel() for p in on_meta(published(shape, n)).parameters()) * 2 for n in (1, 2))
    for memory, layers in ((one, 1), (2 * two - one - 1, 2), (2 * two - one, 3), (99 * two, 4)):
        monkeypatch.setattr(subjects, "memory", lambda device, memory=memory: (3 * memory + 1) // 2)
        assert depth(shape, None, torch.bfloat16, torch.device("cuda")) == (layers, 4)
    assert depth(shape, 3, torch.bfloat16, CPU) == (3, 4)
    monkeypatch.setattr(subjects, "ON_CPU", 2)
    assert depth(shape, None, torch.bfloat16, CPU) == (2, 4)
    with pytest.raises(UsageError, match=r"--layers 5: .* has 4"):
        depth(shape, 5, torch.bfloat16, CPU)
    monkeypatch.setattr(subjects, "memory", lambda device: one)
    with pytest.raises(UsageError, match=r"do not fit cpu: give a smaller --shape"):
        depth(shape, None, torch.bfloat16, CPU)


# The command


@pytest.mark.parametrize("family", TINY)
def test_a_shape_is_measured_without_a_checkpoint(family, tiny, capsys, tmp_path):
    tiny(family)
    found = tmp_path / "deep" / "found.json"
    options = "--tokens 4 --batch 1 2 --answer 1 2 --rounds 1 --dtype float32 --threads 1 --layers 3 --device cpu"
    pruner = "{name: VtcCls, last: 1, query: proxy}"
    assert main([*options.split(), "--pruner", pruner, "--json", str(found)]) == 0
    out = capsys.readouterr().out
    assert "the first 3 of 4 layers" in out
    assert out.count("too few rounds to tell") == 4
    assert "load" in out  # the machine
    told = json.loads(found.read_text())
    assert [batch["size"] for batch in told["batches"]] == [1, 2]
    (pruned,) = told["batches"][1]["pruned"]
    assert (pruned["method"], pruned["tokens"], told["rounds"]) == ("VtcCls(last=1, query='proxy')", 4.0, 1)
    assert len(pruned["answers"][1]["oracle"]["wall"]) == 1
    assert not list(found.parent.glob("*.part"))


def test_a_checkpoint_is_measured_at_three_two_and_one_ninths(capsys):
    pruners = "--pruner", "VtcCls", "{name: RandomPruner, seed: 3}"
    options = "--model vtcframe:tiny --dtype float32 --batch 1 --answer 1 --rounds 1 --device cpu"
    assert main([*options.split(), *pruners]) == 0
    rows = cells(capsys.readouterr().out.splitlines(), 0)
    assert [(row["run"], row["tokens"]) for row in rows[1:]] == [
        (name, tokens) for name in ("VtcCls(last=3)", "RandomPruner(seed=3)") for tokens in ("48", "32", "16")
    ]


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tiny, monkeypatch, tmp_path):
    tiny("llava")
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(UsageError, match="cannot write"):
        main(["--tokens", "4", "--device", "cpu", "--json", str(tmp_path)])


def test_a_batch_that_does_not_fit_is_told_and_the_next_is_run(tiny, monkeypatch, capsys):
    tiny("llava")

    def scarce(model, cases, inputs, *rest):
        if len(inputs["input_ids"]) == 2:
            raise torch.OutOfMemoryError("2 GiB are missing")
        return measure(model, cases, inputs, *rest)

    monkeypatch.setattr(measuring, "measure", scarce)
    assert main("--tokens 4 --batch 2 1 --answer 1 --rounds 1 --device cpu".split()) == 0
    out = capsys.readouterr().out
    assert "## Batch 2\n\nOut of memory: 2 GiB are missing" in out
    assert "## Batch 1\n\nWhole runs." in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--tokens 16", r"a sample has 16 visual tokens: give --tokens that leave some of them out"),
        ("--model vtcframe:tiny --layers 2", r"leave --shape and --layers out"),
        ("--model vtcframe:tiny --shape llava-1.5-7b", r"leave --shape and --layers out"),
        ("--tokens 4 --attn slow", r"--attn slow: "),
        ("--device moon", r"there is no device 'moon' here"),
        ("--tokens 4 --pruner deep", r"llava-1.5-7b with random weights.*: Rows.* beyond the 3"),
    ],
)
def test_what_cannot_be_run_is_said(options, said, tiny):
    tiny("llava")
    given = f"--batch 1 --answer 1 --rounds 1 --device cpu {options}".split()
    with pytest.raises(UsageError, match=said):
        main(["{name: VtcCls, last: 99}" if option == "deep" else option for option in given])


@pytest.mark.parametrize("options", ["--batch 0", "--rounds -1", "--shape llava-9b", "--answer one"])
def test_numbers_and_names_are_checked_at_once(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(options.split())
    assert options.split()[0] in capsys.readouterr().err


def test_a_typo_is_answered_without_torch():
    script = (
        "import sys\nfrom vtcframe.bench import main\nfrom vtcframe.config import UsageError\n"
        "try: main(['--pruner', 'VtcCl'])\nexcept UsageError as error: print(error)\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "Did you mean" in out or "VtcCls" in out
    assert out.endswith("set()\n")
