"""The loop on a toy: what it promises does not depend on what trains."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from capfilt.errors import CommitError, ConfigError, ModelError, TrainingError
from capfilt.train.config import TrainConfig
from capfilt.train.loop import Loop
from capfilt.train.output import Output
from capfilt.train.ranks import Ranks, joined
from capfilt.train.training import Summary, Training
from tests.train import toy
from tests.train.room import files_up_to


def run(out: Path, config: TrainConfig | None = None, **options: int) -> Summary:
    config = config or toy.config()
    with joined() as ranks:
        return run_training(out, config, ranks, toy.training(config, ranks, **options))


def run_training(out: Path, config: TrainConfig, ranks: Ranks, training: Training) -> Summary:
    return Loop(training, config, ranks, stage="toy", out=out).run()


def curve(out: Path) -> list[dict[str, Any]]:
    """Every row of the log less what a clock decides."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    clocked = ("samples_per_s", "waiting", "left_s")
    return [{k: v for k, v in row.items() if k not in clocked} for row in rows]


def steps(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "checkpoints").iterdir())


def test_loop_logs_every_step_and_keeps_the_last_checkpoints(tmp_path: Path) -> None:
    summary = run(tmp_path)
    rows = curve(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["lr"] for row in rows[:3]] == pytest.approx([1e-4, (1e-4 + 0.01) / 2, 0.01])
    assert rows[-1]["losses"] == summary.losses
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert steps(tmp_path) == ["step-00000006", "step-00000008"]
    assert (tmp_path / "captioner" / "weight.txt").is_file()
    assert Output(tmp_path).summary() == summary
    assert (summary.steps, summary.images, summary.epochs) == (8, 64, 2.0)


def test_loop_tells_what_could_not_be_read(tmp_path: Path) -> None:
    config = toy.config()
    with joined() as ranks:
        training = toy.training(config, ranks)
        training.data.left_out = {"image_corrupt": 2}  # type: ignore[misc]
        summary = run_training(tmp_path, config, ranks, training)
    assert summary.to_dict()["left_out"] == {"image_corrupt": 2}
    assert Output(tmp_path).summary() == summary


def test_loop_first_step_is_adamw_from_its_formula(tmp_path: Path) -> None:
    config = toy.config(steps=1)
    with joined() as ranks:
        training = toy.training(config, ranks)
        before = training.model.second.weight.detach().clone()
        run_training(tmp_path, config, ranks, training)
    # After bias correction the first step is lr * sign(gradient), after decay by lr * 0.05.
    moved = before * (1 - 1e-4 * 0.05) - training.model.second.weight.detach()
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-4), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("breaks_at", [1, 4, 7])
def test_loop_resumed_has_the_curve_of_an_uninterrupted_one(breaks_at: int, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    with pytest.raises(OSError, match="the power is gone"):
        run(tmp_path / "broken", breaks_at=breaks_at)
    summary = run(tmp_path / "broken")
    assert summary.steps_before == breaks_at // 3 * 3
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    for name in ("model", "optimiser"):
        file = f"checkpoints/step-00000008/{name}.safetensors"
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_loop_says_in_a_line_that_a_checkpoint_has_no_room_and_goes_on_later(
    tmp_path: Path,
) -> None:
    run(tmp_path / "whole", width=800)
    message = r"checkpoints/step-00000003/model\.safetensors: .*File too large"
    with files_up_to(100_000), pytest.raises(CommitError, match=message):
        run(tmp_path / "broken", width=800)
    assert run(tmp_path / "broken", width=800).steps_before == 0
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    assert steps(tmp_path / "broken") == steps(tmp_path / "whole")


def test_loop_says_in_a_line_that_a_model_cannot_be_written(tmp_path: Path) -> None:
    def export(folder: Path) -> None:
        folder.mkdir()
        save_file({"weight": torch.zeros(30_000)}, folder / "model.safetensors")

    config = toy.config()
    with joined() as ranks:
        training = replace(toy.training(config, ranks), exports={"captioner": export})
        with (
            files_up_to(100_000),
            pytest.raises(CommitError, match=r"/captioner: .*File too large"),
        ):
            run_training(tmp_path, config, ranks, training)
    assert not list(tmp_path.glob("*captioner*"))


def test_loop_of_whole_epochs_has_no_step_too_many(tmp_path: Path) -> None:
    config = toy.config(epochs=7)
    with joined() as ranks:
        training = toy.training(config, ranks)
        training.data.steps_per_epoch = 29 / 7  # times 7 it is above 29
        assert Loop(training, config, ranks, stage="toy", out=tmp_path).steps == 29


def test_loop_that_is_done_does_nothing_more(tmp_path: Path) -> None:
    run(tmp_path)
    rows = curve(tmp_path)
    summary = run(tmp_path, breaks_at=0)
    assert (summary.steps_before, summary.images, summary.losses) == (8, 0, {})
    assert curve(tmp_path) == rows


@pytest.mark.parametrize("damage", ["truncated", "changed", "no record", "no file"])
def test_loop_goes_on_from_the_checkpoint_before_a_damaged_one(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path)
    rows = curve(tmp_path)
    file = tmp_path / "checkpoints/step-00000008/model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "changed":
        file.write_bytes(bytes(reversed(file.read_bytes())))
    elif damage == "no file":
        file.unlink()
    else:
        (file.parent / "checkpoint.json").write_text('{"step": 8')
    with caplog.at_level(logging.WARNING, "capfilt"):
        summary = run(tmp_path)
    assert summary.steps_before == 6
    assert curve(tmp_path) == rows
    assert "going on from the checkpoint before it" in caplog.text
    assert "step-00000008.damaged" in steps(tmp_path)


def test_loop_accumulated_passes_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    """Without dropout and queue the mean over passes is the mean over the batch."""

    class Plain(toy.ToyModel):
        def forward(self, batch: Any, step: int) -> dict[str, torch.Tensor]:
            hidden = self.first(batch.images.flatten(1).float() / 255).tanh()
            return {"one": self.second(hidden).square().mean()}

    curves = []
    for passes in (1, 4):
        config = toy.config(accumulate=passes, steps=3)
        out = tmp_path / str(passes)
        with joined() as ranks:
            training = toy.training(config, ranks)
            data = toy.ToyData(ranks, config.loop.batch_size // passes)
            run_training(out, config, ranks, Training(Plain(), data, training.exports))
        curves.append([(row["losses"]["one"], row["grad_norm"]) for row in curve(out)])
    for one, four in zip(*curves, strict=True):
        assert one == pytest.approx(four, rel=1e-5)


def test_loop_clips_gradients(tmp_path: Path) -> None:
    config = toy.config(steps=1)
    moved = []
    for clip in (0.0, 1e-9):  # so small that eps of AdamW shows
        optimiser = type(config.optimiser)(lr=0.01, clip_norm=clip, weight_decay=0.0)
        clipped = TrainConfig(optimiser=optimiser, loop=config.loop, schedule=config.schedule)
        with joined() as ranks:
            training = toy.training(clipped, ranks)
            before = training.model.first.weight.detach().clone()
            run_training(tmp_path / str(clip), clipped, ranks, training)
        moved.append((training.model.first.weight - before).abs().max().item())
    assert moved[1] < 0.1 * moved[0]


def test_loop_stops_at_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, bad_step=4)
    message = str(caught.value)
    assert message.startswith("step 5: a loss or gradient is not finite (one nan, two 0.")
    assert "toy/00000/32" in message
    assert "last good checkpoint is" in message
    assert "step-00000003" in message
    assert steps(tmp_path) == ["step-00000003"]
    with pytest.raises(TrainingError, match="there is no checkpoint yet"):
        run(tmp_path / "other", bad_step=0)


def test_loop_says_which_keys_help_when_memory_is_short(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, hungry_step=1)
    for word in ("out of memory with 8 images at once", "loop.accumulate", "model.recompute.image"):
        assert word in str(caught.value)


def test_loop_warns_of_other_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="the power is gone"):
        run(tmp_path, breaks_at=4)
    config = toy.config()
    with joined() as ranks, caplog.at_level(logging.WARNING, "capfilt"):
        training = toy.training(config, ranks)
        training.data.fingerprint = "another"
        run_training(tmp_path, config, ranks, training)
    assert "the data is not what it was" in caplog.text


def test_checkpoint_of_a_model_of_another_size_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    config = toy.config()
    with joined() as ranks:
        of_toy = toy.training(config, ranks)
        wider = Training(toy.ToyModel(width=9), of_toy.data, of_toy.exports)
        with pytest.raises(ModelError, match=r"another size: queue has shape \[4, 8\] there"):
            run_training(tmp_path, config, ranks, wider)


def test_loop_removes_what_a_killed_process_left_of_a_checkpoint(tmp_path: Path) -> None:
    half = tmp_path / "checkpoints/step-00000005"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"whole")
    (half / ".optimiser.safetensors.host-1-00000000.tmp").write_bytes(b"half")
    run(tmp_path)
    assert steps(tmp_path) == ["step-00000006", "step-00000008"]


HOLDS = """
import sys
from pathlib import Path
from capfilt.train.output import Output

with Output(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_output_that_another_process_trains_in_is_refused_while_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capfilt.train.output._WAIT_S", 0.2)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process is training in it"):
            run(tmp_path)
        other.kill()
    assert run(tmp_path).steps == 8


def test_output_of_another_training_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    output = Output(tmp_path)
    output.check("toy", toy.config(keep=7))
    with pytest.raises(ConfigError, match=r"another training: loop\.batch_size: 8 -> 16\. Give"):
        output.check("toy", toy.config(batch_size=16))
    with pytest.raises(ConfigError, match="another training: the stage: toy -> other"):
        output.check("other", toy.config())
    with pytest.raises(ConfigError, match="must be a folder"):
        Output(tmp_path / "log.jsonl").check("toy", toy.config())


def test_disk_that_cannot_hold_the_checkpoints_is_refused(tmp_path: Path) -> None:
    from capfilt.train.checkpoints import Checkpoints

    with pytest.raises(ConfigError, match=r"are free, but loop\.keep=2 checkpoints of 1,000,000"):
        Checkpoints(tmp_path, keep=2).check_space(10**15)


def test_tensorboard_has_the_curves(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path)
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    drawn = [event.value for event in found.Scalars("loss/one")]
    assert drawn == pytest.approx([row["losses"]["one"] for row in curve(tmp_path)])
