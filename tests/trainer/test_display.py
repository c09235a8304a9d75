"""What a person sees while a run goes on."""

import io

from rich.console import Console

from trainer.display import Display

METRICS = {"reward/mean": 0.25, "reward/accuracy": 0.2, "response/length_mean": 12.5, "verdict/correct": 0.2,
           "verdict/wrong": 0.7, "verdict/no_answer": 0.1, "verdict/truncated": 0.0, "groups/zero_variance_share": 0.5,
           "policy/clip_fraction": 0.01, "policy/approx_kl": 0.002, "policy/kl_reference": None, "policy/lr": 1e-3,
           "chain/avg@4": 0.5, "chain/avg@4/low": 0.4}  # fmt: skip


def shown(live: bool, *steps: tuple[int, dict, dict], notes: tuple[str, ...] = ()) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=live)
    display = Display(10, live=live, console=console)
    for step in steps:
        display.update(*step)
    for note in notes:
        display.note(note)
    display.close()
    display.close()
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_terminal_every_step_is_one_line_with_its_numbers() -> None:
    text = shown(False, (1, METRICS, {"step_s": 2.0, "tokens_per_second": 812.4}), (2, {}, {}))
    first, second = text.splitlines()
    for part in ("step 1/10", "reward 0.250", "accuracy 0.200", "length 12.5", "zero-variance 50%", "clipped 1.0%",
                 "tok/s 812", "wrong 70%, correct 20%, no_answer 10%", "chain/avg@4 0.500", "left 0:18"):  # fmt: skip
        assert part in first
    assert "truncated" not in first  # a share of zero
    assert "low" not in first
    assert second.startswith("step 2/10")


def test_the_time_left_follows_the_mean_pace_and_ends_with_the_run() -> None:
    steps = [(step, {}, {"step_s": seconds}) for step, seconds in ((1, 1.0), (2, 3.0))]
    assert "left 0:16" in shown(False, *steps).splitlines()[1]
    assert "left 2:00:00" in shown(False, (9, {}, {"step_s": 7200.0}))
    assert "left" not in shown(False, (10, {}, {"step_s": 1.0}))
    assert "left" not in shown(False, (0, {}, {"step_s": 50.0}))  # warm start and first evaluation are no steps


def test_the_panel_keeps_the_last_evaluation_and_notes() -> None:
    text = shown(True, (1, METRICS, {"step_s": 2.0}), (2, {"reward/mean": 0.9}, {}), notes=("saved [a checkpoint]",))
    last = text[text.rindex("step 2/10") :]
    assert "chain/avg@4: 0.500" in last
    assert "0.900" in last
    assert "saved [a checkpoint]" in last
