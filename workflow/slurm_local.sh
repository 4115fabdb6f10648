#!/usr/bin/env bash
# A Slurm cluster of this one machine, for as long as a command runs:
#   workflow/slurm_local.sh make sweep ARGS="--profile workflow/slurm"
# Needs Debian's packages: apt-get install slurm-wlm munge. Nothing outside a temporary folder is
# written, and the daemons listen on the loopback address and end with the script.
set -euo pipefail

PATH=$PATH:/usr/sbin
work=$(mktemp -d)
ports=$(python3 -c '
import socket
free = [socket.socket() for _ in range(2)]
for one in free:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in free))')
read -r controller node <<< "$ports"
pids=()
stop() {
  kill "${pids[@]}" 2> /dev/null || true
  wait "${pids[@]}" 2> /dev/null || true
  rm -rf "$work"
}
trap stop EXIT
mkdir -p "$work/state" "$work/spool"
chmod 755 "$work"
head -c 1024 /dev/urandom > "$work/key"
chmod 400 "$work/key"

cat > "$work/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$node
AuthType=auth/munge
AuthInfo=socket=$work/munge
CredType=cred/munge
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=$(free --mega | awk '/^Mem/ {print $2}') State=UNKNOWN
PartitionName=local Nodes=localhost Default=YES State=UP
CONF
export SLURM_CONF=$work/slurm.conf
# Snakemake's job steps drop SLURM_CONF, so that their srun has to be told again
mkdir "$work/bin"
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$work/bin/srun"
chmod +x "$work/bin/srun"
PATH=$work/bin:$PATH

munged --foreground --force --socket="$work/munge" --key-file="$work/key" \
  --pid-file="$work/munge.pid" --log-file="$work/munge.log" --seed-file="$work/seed" \
  2> /dev/null &
pids+=($!)
slurmctld -D > "$work/slurmctld.log" 2>&1 &
pids+=($!)
slurmd -D -N localhost > "$work/slurmd.log" 2>&1 &
pids+=($!)
for _ in $(seq 60); do
  state=$(sinfo --noheader --format=%T 2> /dev/null || true)
  [ "$state" = idle ] && break
  sleep 0.5
done
if [ "$state" != idle ]; then
  tail -n 20 "$work"/*.log >&2
  exit 1
fi
"$@"
