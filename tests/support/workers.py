"""Processes of a run, forked from one that has imported everything: starting one costs a fraction of a second.

They are told who they are as torchrun or SLURM tells it; one alone is not told.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vtcframe.cli import main
from vtcframe.data.results import Prediction
from vtcframe.inference.checkpoint import Backbone
from vtcframe.runs import command as predict_command
from vtcframe.runs import shards
from vtcframe.runs.predictor import Predictor

assert predict_command  # imported before anything is forked
if "VTCFRAME_WORKERS" in os.environ:
    Backbone("vtcframe:tiny", "float32").load()  # and so is what that imports in its turn


def forking():
    """Return a context whose processes are forked from one that has imported this file."""
    told = {"OMP_NUM_THREADS": "1", "VTCFRAME_WORKERS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    before = {name: os.environ.get(name) for name in told}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.workers"])
    os.environ.update(told)
    try:
        first = context.Process(target=len, args=((),))
        first.start()
        first.join()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    return context


def torchrun(rank: int, world: int, port: int, nodes: int = 1) -> dict[str, str]:
    """Return what torchrun tells a process."""
    here = world // nodes
    told = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % here, "LOCAL_WORLD_SIZE": here}
    told |= {"GROUP_RANK": rank // here, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "a"}
    return {name: str(value) for name, value in told.items()}


def slurm(rank: int, world: int, port: int, nodes: int = 1) -> dict[str, str]:
    """Return what srun tells a process."""
    here = world // nodes
    told = {"NTASKS": world, "NTASKS_PER_NODE": here, "PROCID": rank, "LOCALID": rank % here, "NODEID": rank // here}
    told |= {"JOB_ID": 1, "JOB_NAME": "vtc", "NNODES": nodes, "NODELIST": "127.0.0.1"}
    named = {f"SLURM_{name}": str(value) for name, value in told.items()}
    return named | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


class Run:
    """One attempt: `world` processes of `vtcframe predict`, whose output goes to files in `out`."""

    def __init__(self, context, out: Path, world: int, arguments: Sequence[str], how=torchrun, nodes=1, **more) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        placed = [*arguments, f"--trainer.devices={world // nodes}", f"--trainer.num_nodes={nodes}"]
        if world > 1:
            placed.append("--trainer.strategy=ddp")
        self.out = [out / f"process-{rank}.txt" for rank in range(world)]
        self.processes = [
            context.Process(
                target=work,
                args=(placed, how(rank, world, port, nodes) if world > 1 else {}, self.out[rank], rank),
                kwargs=more,
            )
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def kill(self, *ranks: int) -> None:
        """End processes as the out-of-memory killer does; all of them unless ranks are given."""
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].kill()

    def end(self, limit: float = 900) -> list[int]:
        """Return the exit status of every process; all are killed `limit` seconds from now."""
        until = time.monotonic() + limit
        for process in self.processes:
            process.join(max(0.1, until - time.monotonic()))
        self.kill()
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def said(self) -> str:
        """Return what all of them wrote."""
        return "\n".join(path.read_text() for path in self.out if path.exists())


def work(
    arguments: list[str],
    told: dict[str, str],
    out: Path,
    rank,
    echo=False,
    slow=0.0,
    largest=None,
    twice=(),
    weigh=None,
) -> None:
    """Run the command, quick to notice that another process is gone.

    `echo`: no model, an answer is the rank; `slow`: seconds that a batch takes besides, of all or of each; `largest`:
    bytes of a file; `twice`: options of further runs in the same process; `weigh`: a file for the memory at each step.
    """
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(told)
    shards.HEARTBEAT_S = 0.1
    shards.DEAD_BEATS = (
        1200  # as many seconds as the run may take: a busy machine, or its disk, can stand still for some
    )
    step = _echo if echo else Predictor.predict_step
    if echo:
        Predictor.setup = lambda self, stage: None  # pyright: ignore[reportAttributeAccessIssue]
    slow = slow[rank] if isinstance(slow, list) else slow
    Predictor.predict_step = _slowed(step, slow, weigh)  # pyright: ignore[reportAttributeAccessIssue]
    if largest is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    status = 0
    for options in twice or [[]]:
        status = max(status, main(["predict", *arguments, *options]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _echo(predictor, batch, batch_idx) -> list[Prediction]:
    rank = str(predictor.global_rank)
    return [Prediction(one.id, one.type, one.question, one.answer, "unpruned", prediction=rank) for one in batch]


def _slowed(step: Callable, seconds: float, weigh: Path | None) -> Callable:
    def slowly(predictor, batch, batch_idx):
        time.sleep(seconds)
        if weigh:
            with weigh.open("a") as file:
                file.write(f"{int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGESIZE')}\n")
        return step(predictor, batch, batch_idx)

    return slowly
