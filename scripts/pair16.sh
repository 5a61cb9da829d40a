#!/usr/bin/env bash
# E-TSDM against DDPM on Fashion-MNIST at 16 x 16, three paired seeds: results/pair16 says what is asked.
# bash scripts/pair16.sh [FOLDER OF RUNS]; what is there is not made again. Where there is a C++ compiler the networks
# are compiled: a third faster, the same training but for rounding.
set -euo pipefail
out=${1:-runs/pair16}
compile=$(command -v g++ >/dev/null && echo --compile || true)
export OMP_NUM_THREADS=1 # two runs at once, one core each

trained() { # RUN STEPS RECIPE...: trains a new run, or goes on with it
    local run=$out/$1 steps=$2
    shift 2
    if [ -e "$run/run.json" ]; then
        set -- --resume
    else
        set -- "$@" --data fashion-mnist --size 16 --batch 64 --preset small
    fi
    nearzero train "$@" --steps "$steps" --checkpoint-every 250 --keep 20 $compile --out "$run"
}

card() { # RUN STEP SAMPLER...: 1,000 samples; a second call reads the card back
    local run=$1 step=$2 name=$3
    shift 3
    nearzero evaluate "$out/$run" --step "$step" --fd -n 1000 "$@" --out "$out/$run/$((64 * step))-$name.json"
}

ddim() { card "$1" "$2" ddim --solver ddim --grid trailing --steps 50; }
dpm() { card "$1" "$2" dpm --solver dpm --nfe 20; }

both() { # COMMAND NAME...: for ddpm and etsdm at once
    local command=$1 name=$2
    shift 2
    "$command" "ddpm-$name" "$@" &
    local first=$!
    "$command" "etsdm-$name" "$@"
    wait $first
}

of() { trained "$1" "$2" "${1%%-*}" --seed "$3"; }

for seed in 0 1 2; do
    both of $seed 1000 $seed
    for step in 500 1000; do
        both ddim $seed $step
        both dpm $seed $step
    done
done
nearzero compare "$out"/ddpm-[012] "$out"/etsdm-[012] --html "$out/compare.html"

for recipe in ddpm etsdm; do # ten times the images of the first card
    [ -e "$out/$recipe-long" ] || { cp -r "$out/$recipe-0" "$out/$recipe-long" && rm "$out/$recipe-long"/*-d*.json; }
done
both of long 5000 0
for step in 2000 5000; do
    both ddim long $step
    both dpm long $step
done

for share in 100/20 20/1; do # other cells
    run=etsdm-${share/\//-}
    trained "$run" 1000 etsdm --seed 0 --share $share
    ddim "$run" 1000
    dpm "$run" 1000
done
