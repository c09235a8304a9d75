"""Real runs of several processes under torchrun: the same as one process, and whole after a fault."""

import os
import shutil
import subprocess
import sys

import pytest

from benchmarks.faults import torchrun, two_nodes
from tests.helpers import assert_same_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = ["warm_start.steps=10", "rollout.prompts_per_step=6", "eval.every_steps=null",
         "data.eval.0.source.max_examples=8", "hardware.threads=1", "checkpoint.every_steps=2",
         "checkpoint.keep_last=9"]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
RECIPES = {
    "quickstart": [],
    "quickstart-overlap": ["train.overlap=true", "objective.mismatch={kind: truncated}"],
    "prime_chain": [],
    "cooper_chain": [],
    "quickstart-ppo-shared": ["objective=ppo_shared"],
    "co_reward_chain": ["sources.0.version=III", "sources.0.teacher={share_start: 0.5, is_kl_reference: true}",
                        "objective.kl.coef=0.01"],
}  # fmt: skip


# what the small settings above leave too big
SMALLER = {
    "cooper_chain": ["sources.1.train.prompts=24", "sources.1.train.steps=4", "sources.1.train.solutions_per_step=8"]
}


def training(folder, recipe, *overrides):
    name = recipe.split("-", maxsplit=1)[0]
    where = [f"run.dir={folder.parent}", f"name={folder.name}"]
    return ["-m", "trainer.train", f"recipe={name}", *where, *SMALL, *SMALLER.get(name, []), *overrides]


def run(ranks, folder, recipe, *overrides):
    launcher = torchrun("--standalone", "--nproc-per-node", str(ranks)) if ranks > 1 else [sys.executable]
    command = [*launcher, *training(folder, recipe, *overrides)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)


def finished(ranks, folder, recipe, *overrides):
    done = run(ranks, folder, recipe, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def copied(start, name):
    """The same run under another name."""
    folder = start.parent / name
    shutil.copytree(start, folder)
    resolved = folder / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace(f"name: {start.name}\n", f"name: {name}\n"))
    return folder


def continued_with(start, name, ranks, recipe, steps=4):
    """A copy of the run `start`, carried on to `steps` by so many ranks."""
    return finished(ranks, copied(start, name), recipe, f"train.steps={steps}", "run.resume=must", *RECIPES[recipe])


@pytest.fixture(scope="module", params=list(RECIPES))
def start(request, tmp_path_factory):
    """(recipe, a run of one process after two steps)."""
    folder = tmp_path_factory.mktemp("runs") / "start"
    return request.param, finished(1, folder, request.param, "train.steps=2", *RECIPES[request.param])


@pytest.fixture(scope="module")
def alone(start):
    recipe, folder = start
    return continued_with(folder, "alone", 1, recipe)


def test_two_ranks_compute_what_one_does(start, alone):
    recipe, folder = start
    two = continued_with(folder, "two", 2, recipe)
    assert (two / "checkpoints" / "step-000004" / "sharded").is_dir()
    assert_same_run(alone, two, tolerance=1e-6)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip")
def test_two_nodes_compute_what_one_process_does(start, alone):
    """Two network namespaces joined by a cable, a launcher in each."""
    recipe, folder = start
    nodes = copied(folder, "nodes")
    with two_nodes() as (prefixes, _):
        jobs = [
            subprocess.Popen(
                [*prefix, *torchrun("--nnodes", "2", "--node-rank", str(i), "--nproc-per-node", "1", "--master-addr",
                                    "10.77.0.1", "--master-port", "29512"),
                 *training(nodes, recipe, "train.steps=4", "run.resume=must", *RECIPES[recipe])],
                env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for i, prefix in enumerate(prefixes)
        ]  # fmt: skip
        said = [job.communicate(timeout=900)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said[0][-2000:]
    assert_same_run(alone, nodes, tolerance=1e-6)


def test_what_two_ranks_saved_goes_on_with_one_and_with_four(start):
    recipe, folder = start
    two = continued_with(folder, "saved-by-two", 2, recipe)
    on_two = continued_with(two, "on-2", 2, recipe, steps=6)
    for ranks in (1, 4):
        assert_same_run(on_two, continued_with(two, f"on-{ranks}", ranks, recipe, steps=6), tolerance=1e-6)


def test_a_launch_without_rendezvous_says_how_to_start(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("MASTER_ADDR", "MASTER_PORT")}
    command = [sys.executable, "-m", "trainer.train", "recipe=quickstart", f"run.dir={tmp_path}"]
    done = subprocess.run(command, env=environment | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 2
    assert "MASTER_ADDR" in done.stderr
    assert "torchrun" in done.stderr
