"""The launchers: who a process is by its environment, and how it ends with what started it.

With a real Slurm: tests/slurm.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures import ROOT, write_npz
from killing import alive
from launching import environment, run, tiny

from distributed import Processes, first_host, meeting_place, processes_from_environment
from errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz")


# ---- who am I ----
# What each launcher really sets, as printed by a process that it started (values that nothing reads left out).
TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
            "MASTER_ADDR": "node1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none"}
SLURM_JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NODELIST": "n[1-2]", "SLURM_NNODES": "2",
             "SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_NUM_NODES": "2"}
SLURM_BATCH = SLURM_JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "ENVIRONMENT": "BATCH"}
SLURM_STEP = SLURM_JOB | {"SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
                          "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
                          "SLURM_STEP_NODELIST": "n[1-2]"}
SUBMITIT_LOCAL = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "4711", "SUBMITIT_LOCAL_NTASKS": "2",
                  "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_NODEID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_RANK": "3", "PMIX_NAMESPACE": "1948581889"}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_FD": "8"}
MVAPICH = {f"MV2_COMM_WORLD_{name}": value for name, value in (
    ("RANK", "3"), ("LOCAL_RANK", "1"), ("SIZE", "4"), ("LOCAL_SIZE", "2"))}
ENVIRONMENTS = {
    "nothing": ({}, Processes()),
    "torchrun": (TORCHRUN, Processes(3, 1, 4, 2)),
    "a process of a Slurm step": (SLURM_STEP, Processes(3, 1, 4, 2)),
    "a bare salloc shell": (SLURM_JOB, Processes()),
    "a batch script": (SLURM_BATCH, Processes()),
    "the step in which salloc runs its shell": (SLURM_JOB | {
        "SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}, Processes()),
    "a step smaller than its job": (SLURM_STEP | {
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_STEP_TASKS_PER_NODE": "1"}, Processes()),
    "nodes with different numbers of tasks": (SLURM_STEP | {
        "SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "3", "SLURM_STEP_NUM_TASKS": "7",
        "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, Processes(6, 0, 7, 1)),
    "a GPU for each task": (SLURM_STEP | {"SLURM_GPUS_PER_TASK": "1"}, Processes(3, 1, 4, 2, own_gpu=True)),
    "torchrun in a Slurm step": (SLURM_STEP | TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}, Processes(0, 0, 4, 2)),
    "submitit's local executor": (SUBMITIT_LOCAL, Processes(1, 1, 2, 2)),
    "submitit's local executor, called in a Slurm step": (SLURM_STEP | SUBMITIT_LOCAL, Processes(1, 1, 2, 2)),
    "Open MPI's mpirun": (OPEN_MPI, Processes(3, 1, 4, 2)),
    "MPICH's or Intel's mpirun": (MPICH, Processes(3, 1, 4, 2)),
    "MVAPICH's mpirun": (MVAPICH, Processes(3, 1, 4, 2)),
    "mpirun in a batch job": (SLURM_BATCH | OPEN_MPI, Processes(3, 1, 4, 2)),
    "mpirun on another node, where srun starts its daemon": (SLURM_STEP | MPICH | {
        "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}, Processes(3, 1, 4, 2)),
    "srun --mpi=pmi2": (SLURM_STEP | {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_FD": "8"}, Processes(3, 1, 4, 2)),
    "torchrun under mpirun": (OPEN_MPI | TORCHRUN | {"RANK": "1", "WORLD_SIZE": "2"}, Processes(1, 1, 2, 2)),
    "submitit's Slurm executor": (SLURM_STEP | {"SUBMITIT_EXECUTOR": "slurm"}, Processes(3, 1, 4, 2)),
}


@pytest.mark.parametrize(("env", "expected"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_who_this_process_is(env, expected):
    assert processes_from_environment(env=env) == expected


def test_world_size_must_be_the_launchers():
    assert processes_from_environment(4, SLURM_STEP).world_size == 4
    with pytest.raises(InputError, match="--world_size 2, but the launcher started 4"):
        processes_from_environment(2, SLURM_STEP)
    with pytest.raises(InputError, match="--world_size 4, but the launcher started 1"):
        processes_from_environment(4, SLURM_JOB)


@pytest.mark.parametrize(("env", "message"), [
    ({"RANK": "1"}, "RANK=1 and WORLD_SIZE=1"),
    ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one"),
    ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
])
def test_an_environment_that_makes_no_sense(env, message):
    with pytest.raises(InputError, match=message):
        processes_from_environment(env=env)


@pytest.mark.parametrize(("nodes", "first"), [
    ("n1", "n1"), ("n[1-3,7]", "n1"), ("n[7,1-3]", "n7"), ("gpu[08-12]", "gpu08"), ("a,b[1-2]", "a"),
    ("rack[1-2]n[04-09],login", "rack1n04"), ("node-3.cluster,node-4.cluster", "node-3.cluster"),
])
def test_first_host(nodes, first):
    assert first_host(nodes) == first


def test_where_the_processes_of_a_step_meet():
    """All at one place, that of another step elsewhere; outside of a step Slurm's variables mean nothing."""
    step = SLURM_STEP | {"SLURM_STEP_NODELIST": "localhost,n2"}
    place = meeting_place(step)
    assert place["MASTER_ADDR"] == "localhost"
    assert 10_000 <= int(place["MASTER_PORT"]) < 30_000
    assert meeting_place(step | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}) == place
    for other in ({"SLURM_JOB_ID": "8"}, {"SLURM_STEP_ID": "1"}):
        assert meeting_place(step | other)["MASTER_PORT"] != place["MASTER_PORT"]
    for env in ({}, SLURM_JOB, SLURM_BATCH):
        assert meeting_place(env) == {}


def test_where_the_processes_of_an_mpirun_meet():
    """On one machine; over several, mpirun does not say which of them has process 0."""
    here = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    place = meeting_place(here)
    assert place["MASTER_ADDR"] == "127.0.0.1"
    assert meeting_place(here | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}) == place
    assert meeting_place(here | {"PMIX_NAMESPACE": "1948581890"}) != place
    assert meeting_place(MPICH | {"MPI_LOCALNRANKS": "4"})["MASTER_ADDR"] == "127.0.0.1"
    for env in (OPEN_MPI, MPICH, MVAPICH, SLURM_STEP | OPEN_MPI):
        assert meeting_place(env) == {}


def test_processes_that_do_not_know_where_to_meet(data, tmp_path):
    done = run(sys.executable, ROOT / "main.py", *tiny(data, "--device", "cpu", "--output_dir", tmp_path / "out"),
               **OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "0"})
    assert done.returncode == 2
    assert re.fullmatch("main.py: error: the 4 processes do not know where to meet: set MASTER_ADDR .*\n", done.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun here")
def test_mpirun(data, tmp_path):
    """The installed one. As root it asks for a confirmation, and on a small machine for more processes than cores."""
    done = run("mpirun", "-np", 2, sys.executable, ROOT / "main.py", *tiny(
        data, "--device", "cpu", "--output_dir", tmp_path / "out", "--dist_timeout", 60), OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
        PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es) on cpu") == 1
    assert done.stdout.count("after task 2/2") == 1


STEP_HERE = SLURM_STEP | {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0",
                          "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_JOB_ID": str(os.getpid())}
MPICH_HERE = {"PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(("common", "rank_variables"), [
    (STEP_HERE, ("SLURM_PROCID", "SLURM_LOCALID")),
    pytest.param(MPICH_HERE, ("PMI_RANK", "MPI_LOCALRANKID"), marks=pytest.mark.long),
], ids=["a Slurm step", "mpirun"])
def test_processes_of_a_launcher_meet_and_train(common, rank_variables, data, tmp_path):
    """Two processes with the environment of a step or an mpirun, on one machine: as these would start them."""
    command = [sys.executable, ROOT / "main.py", *tiny(data, "--device", "cpu", "--output_dir", tmp_path / "out",
                                                       "--dist_timeout", 60)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(
        **common | dict.fromkeys(rank_variables, rank))) for rank in "01"]
    try:
        printed = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], printed
    assert "2 process(es) on cpu" in printed[0][0]
    assert printed[1][0] == ""
    assert json.loads((tmp_path / "out" / "config.json").read_text())["world_size"] == 2


def test_one_process_of_a_machine_speaks():
    """Of errors that every process has."""
    said = [run(sys.executable, ROOT / "main.py", "--epohcs", 3, **SLURM_STEP | {
        "SLURM_PROCID": rank, "SLURM_LOCALID": local}) for rank, local in (("0", "0"), ("1", "1"), ("2", "0"))]
    assert [done.returncode for done in said] == [2, 2, 2]
    assert [done.stderr.count("unknown option --epohcs") for done in said] == [1, 0, 1]


# ---- a launcher that is gone ----
CHILD = """import os, signal, time, distributed
signal.signal(signal.SIGTERM, lambda *_: (print("told", os.getpid(), flush=True), os._exit(0)))
distributed.end_with_launcher()
print("up", os.getpid(), flush=True)
time.sleep(60)"""
ENDS_WITH_ITS_PARENT = {
    "a shell": ({}, False),
    "ranks given by hand": ({"RANK": "0", "WORLD_SIZE": "2"}, False),
    "a batch script": (SLURM_BATCH, False),
    "the one task of a step, which may be a shell": (SLURM_STEP | {"SLURM_STEP_NUM_TASKS": "1"}, False),
    "torchrun": (TORCHRUN, True),
    "torchrun with one process": (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, True),
    "a Slurm step": (SLURM_STEP, True),
    "submitit's local executor": (SUBMITIT_LOCAL, True),
    "Open MPI": (OPEN_MPI, True),
    "MPICH": (MPICH, True),
}


def test_a_process_ends_with_its_launcher():
    """And lives on after a shell: `python main.py &`."""
    parents = {name: subprocess.Popen(["sh", "-c", '"$@" & wait', "sh", sys.executable, "-c", CHILD], cwd=ROOT,
                                      env=environment(**env), stdout=subprocess.PIPE, text=True)
               for name, (env, _) in ENDS_WITH_ITS_PARENT.items()}
    children = {name: int(parent.stdout.readline().split()[1]) for name, parent in parents.items()}
    try:
        for parent in parents.values():
            parent.kill()
            parent.wait()
        for name, (_, ends) in ENDS_WITH_ITS_PARENT.items():
            if ends:
                assert parents[name].stdout.readline() == f"told {children[name]}\n", name
        time.sleep(1)
        assert [name for name, child in children.items() if alive(child)] == [
            name for name, (_, ends) in ENDS_WITH_ITS_PARENT.items() if not ends]
    finally:
        for name, child in children.items():
            parents[name].stdout.close()
            if alive(child):
                os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="the names of processes are Linux's")
def test_a_launcher_that_ended_before_its_process_could_look():
    """What adopts the process is played by one that is called `init`."""
    init = f"""import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
libc.prctl(15, b"init", 0, 0, 0)  # PR_SET_NAME
subprocess.run(["sh", "-c", 'sleep 0.5 && "$@" &', "sh", sys.executable, "-c", {CHILD!r}])
os.wait()"""
    done = run(sys.executable, "-c", init, **TORCHRUN)
    assert "told" in done.stdout, done
