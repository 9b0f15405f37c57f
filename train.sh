#!/usr/bin/env bash
# Train on a Slurm cluster or on this machine. A job that is requeued continues where it was.
#
#   sbatch train.sh [EXPERIMENT] [--option value ...]                  by Slurm, as the lines below say
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 train.sh …  options of sbatch go before them
#   bash train.sh [EXPERIMENT] [--option value ...]                    here: one process, or one for each GPU
#
# What to edit for your cluster ("##SBATCH" is a line that is switched off). Every one may also be given to sbatch.
#SBATCH --job-name=l2p
##SBATCH --partition=NAME        # where to run; `sinfo` shows the names
#SBATCH --time=24:00:00         # after this the job is requeued and continues
#SBATCH --nodes=1               # machines
#SBATCH --ntasks-per-node=1     # processes on each: as many as GPUs; without GPUs as you like
##SBATCH --gpus-per-node=1       # GPUs on each machine; switched off: CPU only
#SBATCH --cpus-per-task=1       # CPU cores of each process
##SBATCH --mem=16G               # memory on each machine
#SBATCH --output=slurm-%j.out
#
# Leave these: let Slurm requeue the job, keep one log over all its starts, and warn 2 minutes before the time is over.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120

# Who starts the processes of a job: srun, one task for each process; or torchrun, one task for each machine, which
# starts as many processes there as --ntasks-per-node says.
LAUNCHER=${LAUNCHER:-srun}
# The interpreter, such as ~/venvs/l2p/bin/python; default: .venv beside this file if `make` made one, else python3.
PYTHON=${PYTHON:-}
# Without Slurm: the number of processes; default: one for each GPU, or one.
PROCESSES=${PROCESSES:-}

# ---- nothing to edit below ----
set -uo pipefail

fail() {
  echo "train.sh: error: $1" >&2
  exit 2
}

# sbatch runs a copy of this file from elsewhere, in the folder where sbatch was called.
if [[ ${0##*/} == slurm_script ]]; then
  code=${SLURM_SUBMIT_DIR:-.}
else
  code=$(cd "$(dirname "$0")" && pwd)
fi
[[ -f $code/main.py ]] || fail "there is no main.py in $code: call sbatch in the folder that holds it."
if [[ -z $PYTHON ]]; then
  if [[ -x $code/.venv/bin/python ]]; then PYTHON=$code/.venv/bin/python; else PYTHON=python3; fi
fi
command -v "$PYTHON" > /dev/null || fail "there is no $PYTHON: set PYTHON at the top of train.sh."

# A step that srun started is part of a job already; the one in which salloc may run its shell is not.
in_step=
if [[ -n ${SLURM_STEP_ID:-} && $SLURM_STEP_ID != 4294967290 && ${0##*/} != slurm_script ]]; then in_step=yes; fi
in_job=
if [[ -n ${SLURM_JOB_ID:-} && -z $in_step ]]; then in_job=yes; fi

# --resume begins a run, or continues it; --eval, --overwrite and --speed_test_only exclude it.
arguments=("$@")
resume=yes
output=
words=("$@" "")
for number in "${!arguments[@]}"; do
  argument=${words[number]//_/-}
  value=${words[number + 1]}
  if [[ $argument == *=* ]]; then value=${argument#*=}; fi
  case ${argument%%=*} in
    --eval | --overwrite | --speed-test-only)
      case ${value,,} in false | no | off | 0) continue ;; esac
      if [[ ${argument%%=*} == --overwrite && -n $in_job ]]; then
        fail "--overwrite would also remove the job's own progress when it is requeued: name another --output_dir, or \
remove the run first."
      fi
      resume= ;;
    --output-dir) output=yes ;;
  esac
done
if [[ -n $resume ]]; then
  arguments+=(--resume)
  # Every job has a folder of its own, which stays the same when it is requeued.
  if [[ -n $in_job && -z $output ]]; then arguments+=(--output_dir "output/job_$SLURM_JOB_ID"); fi
fi

if [[ -n $in_step && ${SLURM_STEP_NUM_TASKS:-1} -gt 1 ]]; then
  exec "$PYTHON" "$code/main.py" "${arguments[@]}"
fi

if [[ -z $in_job ]]; then
  if [[ -z $PROCESSES ]]; then
    PROCESSES=$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))') || exit
  fi
  [[ $PROCESSES =~ ^[1-9][0-9]*$ ]] || fail "PROCESSES=$PROCESSES: give a whole number of at least 1."
  if [[ $PROCESSES == 1 ]]; then
    exec "$PYTHON" "$code/main.py" "${arguments[@]}"
  fi
  # Under nohup a closed terminal stops nothing; torchrun by itself would stop then.
  if [[ $(trap -p HUP) == "trap -- '' "* ]]; then export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGQUIT; fi
  # torchrun passes SIGTERM on to its processes as it is; it ends with 1 whatever they end with.
  stopped=
  trap 'stopped=129; kill -TERM $!' HUP
  trap 'stopped=143; kill -TERM $!' TERM
  trap 'stopped=138; kill -TERM $!' USR1
  trap 'stopped=130; kill -TERM $!' INT
  "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$PROCESSES" "$code/main.py" "${arguments[@]}" &
  wait $!
  status=$?
  while [[ -n $stopped ]] && kill -0 $! 2> /dev/null; do wait $!; status=$?; done
  if [[ -n $stopped && $status != 0 ]]; then exit "$stopped"; fi
  exit "$status"
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# One process that fails ends the others. Since Slurm 22.05 srun does not take over the cores of a task by itself.
start=(srun --kill-on-bad-exit=1)
cores=${SLURM_CPUS_PER_TASK:-1}
case $LAUNCHER in
  srun)
    start+=(--cpus-per-task="$cores" "$PYTHON" "$code/main.py")
    stop=USR1 ;;
  torchrun)
    per_node=${SLURM_NTASKS_PER_NODE:-1}
    start+=(--ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$((cores * per_node))")
    start+=("$PYTHON" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="$per_node")
    start+=(--rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}")
    start+=(--rdzv_endpoint="$(hostname):$((10000 + SLURM_JOB_ID % 20000))" "$code/main.py")
    stop=TERM ;;  # which torchrun passes on to its processes
  *)
    fail "LAUNCHER=$LAUNCHER: use srun or torchrun." ;;
esac

# Slurm warns this script before the time is over: the processes stop after their step and save, and the job goes on in
# another turn. SIGTERM is Slurm ending the job; the processes have it too, and need this script no more.
out_of_time=
signalled=
trap 'out_of_time=yes signalled=yes; scancel --signal=$stop "$SLURM_JOB_ID"' USR1
trap 'signalled=yes' TERM
trap 'signalled=yes; scancel --signal=INT "$SLURM_JOB_ID"' INT
trap 'signalled=yes; scancel --signal=HUP "$SLURM_JOB_ID"' HUP
"${start[@]}" "${arguments[@]}" &
while true; do  # a signal interrupts `wait`
  signalled=
  wait $!
  status=$?
  [[ -n $signalled ]] || break
done
if [[ -n $out_of_time && $status != 0 ]]; then
  echo "train.sh: the time is over; requeueing job $SLURM_JOB_ID, which then continues"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
