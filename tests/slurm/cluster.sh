#!/usr/bin/env bash
# A real Slurm with two nodes (n1 and n2, one CPU and 8 GB each) on this machine's loopback, for the tests in this folder.
#
#   tests/slurm/cluster.sh up FOLDER      start it; its state, keys and logs go to FOLDER; prints the SLURM_CONF to export
#   tests/slurm/cluster.sh down FOLDER    stop what `up` started
#
# Needs Debian's slurm-wlm and munge (or the same programs from elsewhere). Authentication is a munged of its own, so
# that an installed Slurm or munge on this machine is neither used nor disturbed.
set -euo pipefail

command=${1:-}
folder=${2:-}
if [[ ! $command =~ ^(up|down)$ || -z $folder ]]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0"
  exit 2
fi

daemons=(slurmd-n1 slurmd-n2 slurmctld munged)  # in the order in which they are stopped

running() {  # a process that ended, but of which nobody took notice yet, does not count
  [[ $(ps -o state= -p "$1") == [!Z]* ]]
}

down() {
  local name pid
  for name in "${daemons[@]}"; do
    [[ -f $folder/$name.pid ]] || continue
    pid=$(<"$folder/$name.pid")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do running "$pid" || break; sleep 0.1; done
    if running "$pid"; then kill -KILL "$pid"; fi
  done
}

if [[ $command == down ]]; then
  down
  exit
fi

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
mkdir -p "$folder"/{state,spool-n1,spool-n2,log}
chmod 755 "$folder"
host=$(hostname -s)
user=$(id -un)

# Ports that nobody listens on now, so that two of these clusters can stand side by side.
read -r port_controller port_n1 port_n2 < <(python3 - <<'PYTHON'
import socket
sockets = [socket.socket() for _ in range(3)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)

cat > "$folder/slurm.conf" <<CONF
ClusterName=l2p-test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port_controller
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
SchedulerParameters=sched_interval=5,batch_sched_delay=0,bf_interval=5
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$port_n1 CPUs=1 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$port_n2 CPUs=1 RealMemory=8000 State=UNKNOWN
PartitionName=batch Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

trap 'echo "cluster.sh: the cluster did not come up; see $folder/log" >&2; down' ERR
(umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed"
slurmctld -c -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF" -N n1
slurmd -f "$SLURM_CONF" -N n2
for _ in $(seq 60); do
  if [[ $(sinfo --noheader --states=idle --format=%D 2>/dev/null) == 2 ]]; then
    echo "export SLURM_CONF=$SLURM_CONF"
    exit
  fi
  sleep 0.5
done
false
