#!/usr/bin/env bash
# Train on a Slurm cluster or on this machine. A job that is requeued continues where it was.
#
#   sbatch train.sh [EXPERIMENT] [--option value ...]                  by Slurm, as the lines below say
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 train.sh …  options of sbatch go before them
#   sbatch --array=0-4 train.sh [EXPERIMENT] [--option value ...]      five runs, with the seeds 0 to 4
#   sbatch --array=1-12 train.sh @runs.txt [--option value ...]        twelve runs: lines 1 to 12 of runs.txt
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

# The number of this job in its array. A job that was submitted by one of an array inherits these variables.
number=${SLURM_ARRAY_TASK_ID:-}
if [[ -n $number && -n $in_job && $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%K 2> /dev/null) == N/A ]]; then
  number=
fi

names() {  # whether the option $1 is among the words behind it
  local word
  for word in "${@:2}"; do
    word=${word//_/-}
    if [[ ${word%%=*} == "$1" ]]; then return 0; fi
  done
  return 1
}

# Prints the words of a line, a zero byte behind each: quotes and \ are as in a shell, and nothing is executed.
split='
import os, shlex, sys
line = sys.argv[2].lstrip("\ufeff").strip()
try:
    words = [] if line.startswith("#") else shlex.split(line)
except ValueError:
    sys.exit(f"train.sh: error: {sys.argv[1]} ends in an open quote or a backslash: a run is one line, quoted as for a "
             "shell.")
sys.stdout.buffer.write(b"".join(os.fsencode(word) + b"\0" for word in words))
'

# The runs of an array differ: by a line of a file each, or by their seed, where Slurm itself runs this script.
arguments=("$@")
of_line=()
run=
if [[ ${1:-} == @* ]]; then
  file=${1#@}
  [[ -f $file && -r $file && -s $file ]] || fail "$1: there is no readable file $file with lines in it."
  mapfile -t lines < "$file"
  [[ -n $number ]] || fail "$1 is for an array of Slurm, which runs one line in each job: sbatch \
--array=1-${#lines[@]} train.sh $1"
  ((number >= 1 && number <= ${#lines[@]})) || fail "$file has no line $number: give --array numbers from 1 to \
${#lines[@]}."
  run=line$number
  mapfile -d '' -t of_line < <("$PYTHON" -I -c "$split" "line $number of $file" "${lines[number - 1]}"; printf %s $?)
  [[ ${of_line[-1]} == 0 ]] || exit 2
  unset 'of_line[-1]'
  [[ ${#of_line[@]} -gt 0 ]] || fail "line $number of $file is empty or a comment: leave its number out of --array."
  for option in --seed --output-dir; do
    if names "$option" "${of_line[@]}" && names "$option" "${@:2}"; then
      fail "line $number of $file names its own ${option/-dir/_dir}: leave it out behind $1, or in that line."
    fi
  done
  arguments=("${of_line[@]}" "${@:2}")
elif [[ -n $number && ${0##*/} == slurm_script ]]; then
  run=seed$number
  if names --seed "$@"; then
    fail "the numbers of the array are the seeds of its runs: leave --seed out, as in sbatch --array=0-4 train.sh."
  fi
fi

# --resume begins a run, or continues it; --eval, --overwrite and --speed_test_only exclude it.
resume=yes
output=
words=("${arguments[@]}" "")
for i in "${!arguments[@]}"; do
  argument=${words[i]//_/-}
  value=${words[i + 1]}
  if [[ $argument == *=* ]]; then value=${words[i]#*=}; fi
  case ${argument%%=*} in
    --eval | --overwrite | --speed-test-only)
      case ${value,,} in false | no | off | 0) continue ;; esac
      if [[ ${argument%%=*} == --overwrite && -n $in_job ]]; then
        fail "--overwrite would also remove the job's own progress when it is requeued: name another --output_dir, or \
remove the run first."
      fi
      resume= ;;
    --output-dir)
      output=yes
      # Given for a whole array, it is the beginning of the folders' names; '' saves nothing and stays.
      if [[ -n $run && -n $value && $value != --* && $i -ge ${#of_line[@]} ]]; then
        if [[ $argument == *=* ]]; then
          arguments[i]=${words[i]%/}_$run
        else
          arguments[i + 1]=${value%/}_$run
        fi
      fi ;;
  esac
done
if [[ $run == seed* ]]; then arguments+=(--seed "$number"); fi
if [[ -n $resume ]]; then
  arguments+=(--resume)
  # Every job has a folder of its own, which stays the same when it is requeued.
  if [[ -z $output ]]; then
    if [[ -n $run ]]; then
      arguments+=(--output_dir "output/job_${SLURM_ARRAY_JOB_ID}_$run")
    elif [[ -n $in_job ]]; then
      arguments+=(--output_dir "output/job_$SLURM_JOB_ID")
    fi
  fi
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
# One job of an array has the array's own number, by which Slurm understands all of them.
job=$SLURM_JOB_ID
if [[ -n $number ]]; then job=${SLURM_ARRAY_JOB_ID}_$number; fi
out_of_time=
signalled=
trap 'out_of_time=yes signalled=yes; scancel --signal=$stop "$job"' USR1
trap 'signalled=yes' TERM
trap 'signalled=yes; scancel --signal=INT "$job"' INT
trap 'signalled=yes; scancel --signal=HUP "$job"' HUP
"${start[@]}" "${arguments[@]}" &
while true; do  # a signal interrupts `wait`
  signalled=
  wait $!
  status=$?
  [[ -n $signalled ]] || break
done
if [[ -n $out_of_time && $status != 0 ]]; then
  echo "train.sh: the time is over; requeueing job $job, which then continues"
  scontrol requeue "$job"
fi
exit "$status"
