#!/usr/bin/env bash
# A study on Slurm, from the folder of this repository, where `make quickstart` or `make test` has made .venv:
#
#     sbatch --nodes 4 cluster/slurm.sh sweep.yaml storage=/shared/results
#
# Ray starts on the nodes of the job, for this job alone, runs the sweep, and ends with it. Five minutes before the time
# is up the study stops, and the job queues again and goes on with it. So it does when the nodes are taken away.
#SBATCH --job-name=study
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=study-%j.log
set -euo pipefail
if [ $# -eq 0 ]; then
    echo "usage: sbatch cluster/slurm.sh SWEEP.yaml [path=value ...]" >&2
    exit 2
fi
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT

PATH=$SLURM_SUBMIT_DIR/.venv/bin:$PATH
head=$(hostname)
RAY_ADDRESS=$head:6379
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export PATH RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

ray_on() { # options of srun, --, options of `ray start`
    local srun=()
    while [ "$1" != -- ]; do srun+=("$1"); shift; done
    srun "${srun[@]}" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        ray start "${@:2}" --block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" &
}

present() { # how many nodes have joined
    python -c "import ray; ray.init(logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))" 2> /dev/null
}

ray_on --nodes=1 --nodelist="$head" -- --head --port=6379 --include-dashboard=false
head_steps=$!
until ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1; do
    kill -0 "$head_steps" # ends the job when the head has ended
    sleep 1
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    ray_on --nodes="$((SLURM_JOB_NUM_NODES - 1))" --exclude="$head" -- --address="$RAY_ADDRESS"
fi
until [ "$(present)" = "$SLURM_JOB_NUM_NODES" ]; do
    kill -0 "$head_steps"
    sleep 1
done

python -m study.run "$@" &
study=$!
stopped=
trap 'stopped=for_time; kill -TERM "$study"' USR1
trap 'stopped=for_good; kill -TERM "$study"' TERM
status=0
wait "$study" || status=$?
if [ -n "$stopped" ]; then # the signal has interrupted `wait`
    wait "$study" || status=$?
fi
if [ "$stopped" = for_time ] && [ "$status" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
