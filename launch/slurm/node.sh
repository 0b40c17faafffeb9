#!/usr/bin/env bash
# The ranks of one node, started by launch/slurm/pretrain.sbatch: node.sh REPOSITORY FIRST_HOST PORT RANKS SETTINGS...
set -u
# SLURM signals every process of the step. The ranks save and end. The launcher ignores the signal and waits, because it would die of it, or
# kill the ranks after 30 seconds.
trap '' USR1 TERM
export PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT
repository=$1 first=$2 port=$3 ranks=$4 file=cpu.yaml
threads=${OMP_NUM_THREADS:-1} # 4,2 is 4, and 2 in nested regions
shift 4
if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then
    ranks=$SLURM_GPUS_ON_NODE file=node.yaml
fi
exec accelerate launch --config_file "$repository/launch/accelerate/$file" --rdzv_backend static --same_network \
    --num_machines "$SLURM_JOB_NUM_NODES" --num_processes $((SLURM_JOB_NUM_NODES * ranks)) --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$first" --main_process_port "$port" --num_cpu_threads_per_process "${threads%%,*}" \
    "$repository/launch/pretrain.py" "$@"
