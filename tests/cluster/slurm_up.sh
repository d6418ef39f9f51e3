#!/usr/bin/env bash
# Starts a real SLURM on this machine, for tests: munge, MariaDB, slurmdbd, slurmctld, and nodes that are all this machine,
# each with two pretend GPUs. Everything lies in FOLDER; no system service and no file under /etc is touched.
#
#   slurm_up.sh FOLDER       then `. FOLDER/env` makes sbatch, squeue, sinfo ... speak to it
#   slurm_down.sh FOLDER     ends it and removes the folder
#
# Needs root, and: apt-get install slurm-wlm munge slurmdbd mariadb-server
# FOLDER: a short path (/tmp/...), since sockets in it have at most 107 characters in their names.
# PORT=18800       first of the ports, so that two clusters can live side by side
# NODES=2          how many nodes: n1 with the feature f1, n2 with f2 ...
# ACCOUNTING=yes   no: without slurmdbd, as on many small clusters
# MAX_SUBMIT=      the most jobs that a user may have in the queue; unlimited
# MAX_ARRAY=1001   MaxArraySize
# CLUSTER=test     its name
# GATHER=none      linux: memory and CPU time of jobs are in the accounting
# TASK_PLUGIN=     task/none: jobs stay on the cores of this shell
#
# Partitions: low (preempted by requeue), spot (preempted by cancel), high (preempts both). Waits are short: 5 s of
# grace, 5 s from SIGTERM to SIGKILL, 15 s until a silent node counts as down, about 12 s until a requeued job starts.
set -euo pipefail
umask 022
folder=$(realpath -m "${1:?a folder for configuration, state and logs}")
port=${PORT:-18800}
nodes=${NODES:-2}
accounting=${ACCOUNTING:-yes}
[ "$(id -u)" = 0 ] || { echo "slurm_up.sh: must be run as root (munged, slurmctld and slurmd are started)" >&2; exit 1; }
for program in slurmctld slurmd munged $([ "$accounting" = yes ] && echo slurmdbd mariadbd); do
  [ -n "$(PATH=$PATH:/usr/sbin command -v $program)" ] || {
    echo "slurm_up.sh: $program is missing: apt-get install slurm-wlm munge slurmdbd mariadb-server" >&2; exit 1; }
done
export PATH=$PATH:/usr/sbin
[ ! -e "$folder/env" ] || { echo "slurm_up.sh: $folder holds a cluster already; slurm_down.sh ends it" >&2; exit 1; }
mkdir -p "$folder"/{etc,state,spool,log,munge}
cd "$folder"

wait_for() { # WHAT COMMAND...: up to 30 s, then the logs
  local what=$1
  shift
  for _ in $(seq 60); do
    "$@" >/dev/null 2>&1 && return
    sleep .5
  done
  echo "slurm_up.sh: $what did not come up" >&2
  tail -n 20 log/*.log >&2
  exit 1
}

(umask 077; head -c 1024 /dev/urandom >munge/key)
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge.pid" \
  --log-file="$folder/log/munge.log" --seed-file="$folder/munge/seed" 2>>log/munge.log

host=$(hostname -s)
memory=$(awk '/MemTotal/ {print int($2 / 1024 / 3)}' /proc/meminfo)
devices=()
for device in /dev/tty0 /dev/tty1 /dev/null /dev/zero; do [ -e $device ] && devices+=($device); done
cat >etc/slurm.conf <<END
ClusterName=${CLUSTER:-test}
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=${TASK_PLUGIN:-task/affinity}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=15
InactiveLimit=0
KillWait=5
MaxArraySize=${MAX_ARRAY:-1001}
GresTypes=gpu
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/${GATHER:-none}
SchedulerParameters=sched_interval=2,bf_interval=2
END
for n in $(seq "$nodes"); do
  echo "NodeName=n$n NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 10 + n)) CPUs=2 RealMemory=$memory Gres=gpu:2 Feature=f$n State=UNKNOWN"
done >>etc/slurm.conf
cat >>etc/slurm.conf <<END
PartitionName=low Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=spot Nodes=n[1-$nodes] Default=NO MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=5
PartitionName=high Nodes=n[1-$nodes] Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
END
echo "NodeName=n[1-$nodes] Name=gpu File=${devices[0]},${devices[1]}" >etc/gres.conf
export SLURM_CONF=$folder/etc/slurm.conf

if [ "$accounting" = yes ]; then
  cat >>etc/slurm.conf <<END
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=$((port + 1))
AccountingStoragePass=$folder/munge/socket
END
  [ -z "${MAX_SUBMIT:-}" ] || echo "AccountingStorageEnforce=limits,qos" >>etc/slurm.conf
  mariadb-install-db --no-defaults --datadir="$folder/mysql" --user=root --auth-root-authentication-method=normal \
    --skip-test-db >log/mariadb-install.log 2>&1
  export MYSQL_UNIX_PORT=$folder/mysql.socket
  mariadbd --no-defaults --datadir="$folder/mysql" --socket="$MYSQL_UNIX_PORT" --pid-file="$folder/mysql.pid" \
    --skip-networking --user=root --innodb-buffer-pool-size=64M >log/mariadb.log 2>&1 </dev/null &
  wait_for MariaDB mariadb-admin --no-defaults --socket="$MYSQL_UNIX_PORT" ping
  cat >etc/slurmdbd.conf <<END
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=root
StorageType=accounting_storage/mysql
StorageLoc=slurm_acct_db
StorageUser=root
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/slurmdbd.pid
END
  chmod 600 etc/slurmdbd.conf
  slurmdbd
  wait_for slurmdbd sacctmgr -n list cluster
fi

slurmctld
wait_for slurmctld scontrol ping
[ -z "${MAX_SUBMIT:-}" ] || sacctmgr -i modify qos normal set "MaxSubmitJobsPerUser=$MAX_SUBMIT" >log/limits.log
for n in $(seq "$nodes"); do slurmd -N "n$n"; done
idle() { [ "$(sinfo -h -p low -t idle -o %D)" = "$nodes" ]; }
wait_for "the nodes" idle
# MYSQL_UNIX_PORT: slurmdbd has to be started with it again after it was stopped.
echo "export SLURM_CONF=$SLURM_CONF MYSQL_UNIX_PORT=$folder/mysql.socket SLURM_TEST_FOLDER=$folder" >env
sinfo -o '%P %t %D %N %G %c %m'
