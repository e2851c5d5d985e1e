"""What sharing a training costs: bytes a step, the step's time in one and in two processes, and what a model says.

    python benchmarks/scale.py lenet5 squeezenet1.1 resnet18 … [--rounds 8] [--size 64]

Two processes of one thread each, over gloo on this machine, take turns at: the whole batch in one process; half of it
in each, without talking; the sum of the gradients alone; and the shared step. The model is docs/scale.md's: the step of
half a batch, and then the sum. Times are medians over the rounds; the ratio is measured over modelled.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

PLACES = ("whole", "half", "sum", "shared")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--size", type=int, help="side of the pictures, for networks that take any")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        measure(arguments)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
    processes = [subprocess.Popen(command, env=os.environ | meeting | {"RANK": str(rank)}) for rank in range(2)]
    sys.exit(max(process.wait() for process in processes))


def measure(arguments):
    """Of each network, by both processes; rank 0 prints."""
    import torch

    from deploykit.process_group import joined
    from deploykit.ranks import job

    torch.set_num_threads(1)
    with joined(job(), lambda reason: print(reason, file=sys.stderr)) as ranks:
        if ranks.rank == 0:
            print(
                "| network | parameters | MB sent a step | whole batch, one process | half, each | sum alone | shared |"
                " modelled | measured / modelled | speed-up |"
            )
            print("|---|" + "---:|" * 9, flush=True)
        for network in arguments.networks:
            times = {name: statistics.median(found) for name, found in rounds(network, arguments, ranks).items()}
            if ranks.rank == 0:
                print(row(network, times, ranks), flush=True)


def rounds(network, arguments, ranks):
    """Seconds of each way, the slower process of the two, by round."""
    from deploykit.shared_training import Team

    alone, together = made(network, arguments, Team()), made(network, arguments, Team(ranks))
    gradients = [parameter for parameter in together[0].module.parameters() if parameter.requires_grad]
    ROWS[network] = sum(parameter.numel() for parameter in gradients)
    ways = {
        "whole": lambda: step(alone, whole=True) if ranks.rank == 0 else None,
        "half": lambda: step(alone),
        "sum": lambda: together[0].team.sum_gradients(gradients),
        "shared": lambda: step(together),
    }
    step(together)  # gradients for the sum, and memory for all
    times = {name: [] for name in PLACES}
    for number in range(arguments.rounds + 1):
        for name in PLACES if number % 2 else reversed(PLACES):
            ranks.gather(b"")
            began = time.perf_counter()
            ways[name]()
            taken = max(together[0].team.all([time.perf_counter() - began]))
            if number:  # the first round warms up
                times[name].append(taken)
    return times


ROWS = {}


def made(network, arguments, team):
    """A run, and its pictures: the whole batch."""
    import torch

    from deploykit.models import build, spec
    from deploykit.preprocess import for_network
    from deploykit.training_recipes import recipe_for
    from deploykit.training_run import start_run

    entry = spec(network)
    side = (arguments.size if arguments.size and entry.any_size else None) or entry.input[1]
    depth, count = entry.input[0], arguments.batch_size
    options = replace(recipe_for("pictures", network, side), batch_size=count, device="cpu", threads=1, ema=0.0)
    torch.manual_seed(0)
    preprocess = for_network((depth, side, side), None, mean=(0.5,) * depth, std=(0.25,) * depth)
    run = start_run(build(network, 10, depth), options, preprocess, team=team)
    run.begin_training()
    return run, torch.rand(count, depth, side, side) * 255.0, torch.randint(0, 10, (count,))


def step(run_and_pictures, whole=False):
    from deploykit.augment import Mixed
    from deploykit.training_step import train_step

    run, pictures, targets = run_and_pictures
    count = len(targets)
    part = slice(0, count) if whole else run.team.part(count) if not run.team.alone else slice(0, count // 2)
    run.part = count  # at once
    train_step(run, Mixed(pictures[part], targets[part], targets[part], 1.0), count if not run.team.alone else None)


def row(network, times, ranks):
    parameters = ROWS[network]
    sent = 2 * (ranks.world - 1) / ranks.world * 4 * parameters
    modelled = times["half"] + times["sum"]
    cells = [f"{times[name] * 1e3:,.1f} ms" for name in PLACES]
    return (
        f"| `{network}` | {parameters:,} | {sent / 1e6:,.1f} | {' | '.join(cells)} | {modelled * 1e3:,.1f} ms |"
        f" {times['shared'] / modelled:.2f} | {times['whole'] / times['shared']:.2f} |"
    )


if __name__ == "__main__":
    main()
