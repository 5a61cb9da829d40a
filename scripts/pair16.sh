#!/usr/bin/env bash
# E-TSDM against DDPM on Fashion-MNIST at 16 x 16, three paired seeds: results/pair16 says what is asked.
# bash scripts/pair16.sh [FOLDER OF RUNS]; what is there is not made again.
set -euo pipefail
out=${1:-runs/pair16}

trained() { # RUN STEPS RECIPE...: trains a new run, or goes on with it
    local run=$out/$1 steps=$2
    shift 2
    if [ -e "$run/run.json" ]; then
        set -- --resume
    else
        set -- "$@" --data fashion-mnist --size 16 --batch 64 --preset small
    fi
    nearzero train "$@" --steps "$steps" --checkpoint-every 250 --keep 4 --out "$run"
}

distances() { # RUN: two cards, which a second call reads back
    local run=$out/$1
    nearzero evaluate "$run" --fd -n 1000 --solver ddim --grid trailing --steps 50 --out "$run/fd.json"
    nearzero evaluate "$run" --fd -n 1000 --solver dpm --nfe 20 --out "$run/fd-dpm.json"
}

for seed in 0 1 2; do
    for recipe in ddpm etsdm; do
        trained $recipe-$seed 500 $recipe --seed $seed
        distances $recipe-$seed
    done
done
nearzero compare "$out"/ddpm-[012] "$out"/etsdm-[012] --html "$out/compare.html"

for recipe in ddpm etsdm; do # twice the images
    if [ ! -e "$out/$recipe-long" ]; then
        cp -r "$out/$recipe-0" "$out/$recipe-long"
        rm -r "$out/$recipe-long"/fd*
    fi
    trained $recipe-long 1000
    distances $recipe-long
done
for share in 100/20 20/1; do # other cells
    run=etsdm-${share/\//-}
    trained "$run" 500 etsdm --seed 0 --share $share
    distances "$run"
done
