#!/usr/bin/env bash
# Ends the cluster that slurm_up.sh started in FOLDER, by the process ids that it left there, and removes the folder.
set -uo pipefail
folder=$(realpath "${1:?the folder that was given to slurm_up.sh}") || exit 1
[ -f "$folder/etc/slurm.conf" ] || { echo "slurm_down.sh: there is no cluster in $folder" >&2; exit 1; }
export SLURM_CONF=$folder/etc/slurm.conf
timeout 10 squeue -h -o %A 2>/dev/null | sort -u | xargs -r timeout 20 scancel 2>/dev/null
for _ in $(seq 60); do # SIGTERM, KillWait, SIGKILL
  [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
  sleep .25
done
for file in "$folder"/slurmd-*.pid "$folder"/slurmctld.pid "$folder"/slurmdbd.pid "$folder"/mysql.pid "$folder"/munge.pid; do
  [ -f "$file" ] || continue
  process=$(cat "$file")
  kill "$process" 2>/dev/null
  for _ in $(seq 40); do
    kill -0 "$process" 2>/dev/null || break
    sleep .25
  done
  kill -9 "$process" 2>/dev/null
done
rm -rf "$folder"
