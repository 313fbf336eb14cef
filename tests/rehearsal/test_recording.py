"""--cuda-graphs from end to end on a rehearsed card: nothing is recorded, or the GPU is lost."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from grpo.settings.errors import SettingsError
from models.sampling import cuda_graph
from models.sampling.cuda_graph import Graph
from tests.rehearsal.card import rehearsed
from tests.rehearsal.counts import REPLAYS

FLAGS = "--recipe phantom --train-size 24 --prompts-per-step 2 --group-size 4 --ood none --steps 2"
FLAGS += " --max-completion-length 24 --eval-size 0 --val-size 0 --cache none --threads 1"
FLAGS += " --device cuda --dtype float32 --trace-steps 1,2"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that asks for a value, which no capture allows."""
    step = cuda_graph.step

    def asking(buffers, *rest):
        step(buffers, *rest)
        buffers.hidden.sum().item()

    monkeypatch.setattr(cuda_graph, "step", asking)


def run(out: Path, graphs: str, *more: str) -> int:
    """Replays of graphs in a run of train.py."""
    with rehearsed("sm80") as rehearsal:
        train.main([*FLAGS.split(), "--out", str(out), "--cuda-graphs", graphs, *more])
    return rehearsal.counts.total(REPLAYS)


def drawn(out: Path) -> list[torch.Tensor]:
    return [load_file(file)["token_ids"] for file in sorted(out.glob("trace/*.safetensors"))]


def complaints(said: str) -> list[str]:
    return [line for line in said.splitlines() if "cuda-graphs" in line]


@pytest.mark.slow
def test_auto_goes_on_after_one_line_and_draws_what_off_draws(tmp_path, capsys, waits):
    assert run(tmp_path / "auto", "auto") == 0
    (line,) = complaints(capsys.readouterr().err)
    assert line.startswith("--cuda-graphs auto: a decoding step cannot be recorded as a CUDA graph")
    assert line.endswith("; sampling goes on without graphs")
    assert run(tmp_path / "off", "off") == 0
    assert complaints(capsys.readouterr().err) == []
    pairs = list(zip(drawn(tmp_path / "auto"), drawn(tmp_path / "off"), strict=True))
    assert len(pairs) == 2
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.slow
def test_on_ends_the_run_and_every_setting_draws_the_same_where_nothing_is_refused(
    tmp_path, capsys, monkeypatch, waits
):
    with pytest.raises(SettingsError, match=r"^--cuda-graphs on: .* use auto or off$"):
        run(tmp_path / "refused", "on")
    monkeypatch.undo()
    assert run(tmp_path / "on", "on") > 0
    assert run(tmp_path / "off", "off") == 0
    assert complaints(capsys.readouterr().err) == []
    pairs = list(zip(drawn(tmp_path / "on"), drawn(tmp_path / "off"), strict=True))
    assert len(pairs) == 2
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.slow
def test_a_run_that_lost_its_gpu_names_the_flag_and_goes_on_without_graphs(
    tmp_path, capsys, monkeypatch
):
    out, replay = tmp_path / "run", Graph.replay

    def lost_after_a_checkpoint(graph):
        if any(out.glob("checkpoints/*")):
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand advice")
        replay(graph)

    monkeypatch.setattr(Graph, "replay", lost_after_a_checkpoint)
    with pytest.raises(SystemExit) as end:
        run(out, "auto", "--save-every", "1")
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "train.py: the GPU is lost to this process (CUDA error: an illegal memory access was "
        "encountered); start it again with --cuda-graphs off; go on with: python train.py "
    )
    run(out, "off", "--save-every", "1", "--resume", "auto")
    assert len(drawn(out)) == 2
