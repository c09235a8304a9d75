"""What happens to a run of several ranks when one of them is killed, frozen, or cut off the network.

`python -m benchmarks.faults` starts `torchrun` on this machine (two ranks, or two network namespaces as two nodes,
which needs root), breaks it in a given phase of a step, and reports what the job said, how long it took to end, whether
the last checkpoint is whole, and whether the resumed run writes the metrics of a run that was left alone, to the last
byte.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, Report, portable, progress, table
from trainer.checkpoint import list_checkpoints

SILENCE_S = 12.0
STEPS = 8
# what makes a phase long enough to be hit; the same for the run that is left alone
PHASES = {
    "generation": ["rollout.prompts_per_step=256", "checkpoint.every_steps=3"],
    "backward pass": ["train.epochs_per_batch=24", "objective.mismatch.kind=truncated", "checkpoint.every_steps=3"],
    "checkpoint": ["checkpoint.every_steps=1"],
}
FAULTS = ("killed", "frozen", "cut off")


def command(folder: Path, name: str, phase: str, launcher: list[str]) -> list[str]:
    overrides = [f"run.dir={folder}", f"name={name}", f"train.steps={STEPS}", "warm_start.steps=20",
                 "eval.every_steps=null", "data.eval.0.source.max_examples=8",
                 "hardware.threads=1", f"hardware.distributed.silence_timeout_s={SILENCE_S}",
                 "rollout.prompts_per_step=8", *PHASES[phase]]  # fmt: skip
    return [*launcher, "-m", "trainer.train", "recipe=quickstart", *overrides]


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


@contextmanager
def two_nodes() -> Iterator[tuple[list[list[str]], list[str]]]:
    """(prefixes that run a command on each of two namespaces joined by a cable, the command that cuts it)."""
    names, links = ("assay-a", "assay-b"), ("assay-va", "assay-vb")
    run = lambda *words: subprocess.run(words, check=True, capture_output=True)  # noqa: E731
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    for name in names:
        run("ip", "netns", "add", name)
    run("ip", "link", "add", links[0], "type", "veth", "peer", "name", links[1])
    for i, (name, link) in enumerate(zip(names, links, strict=True)):
        run("ip", "link", "set", link, "netns", name)
        inside = ["ip", "netns", "exec", name, "ip"]
        run(*inside, "addr", "add", f"10.77.0.{i + 1}/24", "dev", link)
        run(*inside, "link", "set", link, "up")
        run(*inside, "link", "set", "lo", "up")
    try:
        cut = ["ip", "netns", "exec", names[1], "ip", "link", "set", links[1], "down"]
        yield [["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={link}"]
               for name, link in zip(names, links, strict=True)], cut  # fmt: skip
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def rank_pids(token: str) -> dict[int, int]:
    """{rank: pid} of the training processes that were started with ASSAY_FAULTS=token."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            items = (entry / "environ").read_text().split("\0")
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            launcher = Path(f"/proc/{parent}/cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        values = dict(item.split("=", 1) for item in items if "=" in item)
        # the verifier's workers have the same environment and another parent
        if values.get("ASSAY_FAULTS") == token and "RANK" in values and "torch.distributed.run" in launcher:
            found[int(values["RANK"])] = int(entry.name)
    return found


def wait_for(phase: str, run: Path, after_step: int) -> bool:
    """Until the run is in `phase` of a step after `after_step`; False if it ended before."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        done = len((run / "metrics.jsonl").read_text().splitlines()) - 1 if (run / "metrics.jsonl").exists() else -1
        if phase == "checkpoint":
            if done >= after_step and list((run / "checkpoints").glob(".partial-*")):
                return True
        elif done >= after_step:
            # the trajectories of a step are written between its rollouts and its update
            written = (run / "trajectories" / f"step-{done + 1:06d}.jsonl").exists()
            if written == (phase == "backward pass"):
                time.sleep(0.15)
                return True
        time.sleep(0.01)
    return False


def attempt(fault: str, phase: str, folder: Path, reference: Path) -> dict[str, Any]:
    name = f"{fault}-{phase}".replace(" ", "_")
    run = folder / name
    token = str(time.monotonic_ns())
    environment = os.environ | {"ASSAY_FAULTS": token, "OMP_NUM_THREADS": "1"}
    log = (folder / f"{name}.log").open("w+")
    nodes = two_nodes() if fault == "cut off" else None
    prefixes, cut = nodes.__enter__() if nodes else ([[]], [])
    try:
        if nodes:
            launchers = [[*prefix, *torchrun("--nnodes", "2", "--node-rank", str(i), "--nproc-per-node", "1",
                                             "--master-addr", "10.77.0.1", "--master-port", "29511")]
                         for i, prefix in enumerate(prefixes)]  # fmt: skip
        else:
            launchers = [torchrun("--standalone", "--nproc-per-node", "2")]
        jobs = [subprocess.Popen(command(folder, name, phase, launcher), stdout=log, stderr=subprocess.STDOUT,
                                 env=environment) for launcher in launchers]  # fmt: skip
        hit = wait_for(phase, run, 3)
        pids = rank_pids(token)
        started = time.monotonic()
        if fault == "cut off":
            subprocess.run(cut, check=True)
        else:
            os.kill(pids[1], signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        survivor = pids[0]
        while Path(f"/proc/{survivor}").exists() and time.monotonic() - started < 180:
            time.sleep(0.05)
        noticed_s = time.monotonic() - started
        for job in jobs:
            job.wait(timeout=180)
        ended_s = time.monotonic() - started
    finally:
        if nodes:
            nodes.__exit__(None, None, None)
    log.seek(0)
    text = log.read()
    lines = text.splitlines()
    said = [line if line.startswith("assay: ") else f"{line[:90]} [...] {lines[i + 1].strip()}"
            for i, line in enumerate(lines)
            if line.startswith("assay: ") or "exchange with the other" in line]  # fmt: skip
    whole = list_checkpoints(run / "checkpoints")
    left = [p.name for p in (run / "checkpoints").glob(".partial-*")]
    again = subprocess.run(command(folder, name, phase, torchrun("--standalone", "--nproc-per-node", "2")),
                           env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    same = (run / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    return {
        "fault": fault, "phase": phase, "hit": hit, "survivor_ended_s": round(noticed_s, 1),
        "job_ended_s": round(ended_s, 1), "exit_status": [job.returncode for job in jobs],
        "message": said[0] if said else text.strip().splitlines()[-1][:200],
        "last_checkpoint": whole[-1].name if whole else None, "half_written": left,
        "resumed": again.returncode == 0, "same_metrics": same,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=list(PHASES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1, choices=[1], help="of each rank")
    arguments = parser.parse_args()
    report = Report("faults", arguments)
    report.header["command"] = portable(["python", "-m", "benchmarks.faults", *sys.argv[1:]])
    folder = Path(tempfile.mkdtemp(prefix="assay-faults-"))
    rows: list[dict[str, Any]] = []
    try:
        for phase in arguments.phases:
            subprocess.run(command(folder, f"alone-{phase.replace(' ', '_')}", phase,
                                   torchrun("--standalone", "--nproc-per-node", "2")),
                           check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
            for fault in arguments.faults:
                rows.append(attempt(fault, phase, folder, folder / f"alone-{phase.replace(' ', '_')}"))
                progress(json.dumps(rows[-1]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    columns = ("fault", "in the middle of", "the other rank ended after", "the job after", "its message",
               "last whole checkpoint", "resumed", "metrics as undisturbed")  # fmt: skip
    lines = [
        [r["fault"], r["phase"], f"{r['survivor_ended_s']} s", f"{r['job_ended_s']} s", r["message"],
         str(r["last_checkpoint"]), "yes" if r["resumed"] else "NO", "yes" if r["same_metrics"] else "NO"]
        for r in rows
    ]  # fmt: skip
    how = (f"Two ranks (two network namespaces where a node is cut off); silence_timeout_s={SILENCE_S:g}; the fault "
           "falls on rank 1, or on its cable.\n\n")  # fmt: skip
    report.write({"rows": rows}, how + table(columns, lines))


if __name__ == "__main__":
    main()
