import pytest

from vtcframe.cli import main
from vtcframe.inference.checkpoint import Backbone
from vtcframe.testing.laws.checkpoint import PRUNERS
from vtcframe_backbones.llava import Llava


@pytest.fixture
def tiny(monkeypatch, llava):
    """The random LLaVA of the tests in place of a checkpoint; its processor has no chat template."""
    monkeypatch.setattr(Backbone, "load", lambda self: llava)


def check(capsys, *arguments):
    status = main(["check", "some/checkpoint", *arguments])
    out, err = capsys.readouterr()
    return status, [line.split("  ") for line in out.splitlines()], err


def outcomes(lines):
    return {
        (line[0].strip(), *[part.strip() for part in line[1:] if part.strip()][:1]): line[-1].strip() for line in lines
    }


def test_every_law_holds_on_the_bundled_checkpoint(capsys):
    assert main(["check", "vtcframe:tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Llava, torch.float32 on cpu" in lines[0]
    assert len(lines) == 2 + 3 * 3 + 1
    for law in ("keep all", "removed = masked", "alone = in a batch"):
        for pruner in map(str, PRUNERS):
            assert any(line.startswith(law) and pruner in line and line.endswith("  holds") for line in lines)
    assert lines[-1] == "11 holds, 0 broken, 0 not served"


def test_a_broken_adapter_is_reported_for_each_law_and_by_the_exit_status(tiny, monkeypatch, capsys):
    splice = Llava.splice

    def broken(self, inputs, evidence, pruned, positions="original"):
        out = splice(self, inputs, evidence, pruned, positions)
        if pruned.total[0] < evidence.layout.untouched[0]:
            out["position_ids"] = (out["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return out

    monkeypatch.setattr(Llava, "splice", broken)
    status, lines, _ = check(capsys)
    assert status == 1
    outcome = outcomes(lines)
    assert outcome["keep all", "RandomPruner(seed=0)"] == "holds"
    assert outcome["removed = masked", "RandomPruner(seed=0)"].startswith("broken: removed = masked: logits differ by")
    assert lines[-1] == ["8 holds, 3 broken, 0 not served"]


def test_an_adapter_that_raises_or_keeps_a_hook_is_broken_and_the_other_laws_are_checked(
    tiny, monkeypatch, capsys, llava
):
    def broken(self, *_):
        llava[0].lm_head.register_forward_hook(lambda *_: None)
        raise KeyError("pixels")

    monkeypatch.setattr(Llava, "splice", broken)
    try:
        status, lines, _ = check(capsys)
    finally:
        llava[0].lm_head._forward_hooks.clear()
    assert status == 1
    outcome = outcomes(lines)
    assert outcome["an exception leaves nothing behind", "-"] == "holds"
    assert outcome["removed = masked", "UniformPruner()"] == "broken: KeyError: 'pixels'"


def test_needs_that_an_adapter_does_not_serve_are_reported_as_not_served(tiny, monkeypatch, capsys):
    encode = Llava.encode

    def poor(self, inputs, arrangement, needs=()):
        if tuple(needs):
            raise ValueError("no [CLS] here")
        return encode(self, inputs, arrangement, needs)

    monkeypatch.setattr(Llava, "encode", poor)
    status, lines, _ = check(capsys, "--tokens=3")
    assert status == 0
    assert outcomes(lines)["every law", str(PRUNERS[0])] == "not served: no [CLS] here"
    assert lines[-1] == ["8 holds, 0 broken, 1 not served"]


def test_the_tolerance_of_half_precision_follows_the_checkpoint(tiny, monkeypatch, capsys):
    from vtcframe.testing import tiny_llava

    model, processor = tiny_llava()
    monkeypatch.setattr(Backbone, "load", lambda self: (model.bfloat16(), processor))
    _, lines, _ = check(capsys, "--dtype=bfloat16")
    assert "near ties may swap in half precision" in lines[0][-1]
    assert outcomes(lines)["keep all", "RandomPruner(seed=0)"] == "holds"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens=1000"], "drops nothing: the samples have [16, 16, 32, 0] visual tokens"),
        (["--tokens=0"], "tokens must be at least 1, got 0"),
        (["--device=banana"], "there is no device 'banana' here: use cpu"),
        (["--image=lost.png"], "cannot read the image lost.png: FileNotFoundError"),
    ],
)
def test_wrong_options_are_errors(tiny, capsys, arguments, message):
    status, lines, err = check(capsys, *arguments)
    assert (status, lines) == (2, [])
    assert err.startswith("vtcframe: error: ")
    assert message in err


def test_a_folder_that_is_no_checkpoint_is_an_error(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 2
    assert "cannot be loaded as a checkpoint" in capsys.readouterr().err
