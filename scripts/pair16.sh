#!/usr/bin/env bash
# E-TSDM against DDPM on Fashion-MNIST at 16 x 16, three paired seeds: results/pair16 says what is asked.
# bash scripts/pair16.sh [FOLDER OF RUNS]; what is there is not made again.
set -euo pipefail
out=${1:-runs/pair16}
for seed in 0 1 2; do
    for recipe in ddpm etsdm; do
        run=$out/$recipe-$seed
        [ -e "$run/done" ] && continue
        resume=$([ -e "$run/run.json" ] && echo --resume || echo "$recipe --seed $seed --data fashion-mnist --size 16 --batch 64")
        # shellcheck disable=SC2086
        nearzero train $resume --preset small --steps 1000 --checkpoint-every 250 --keep 4 --out "$run"
        touch "$run/done"
    done
done

for run in "$out"/*-[012]; do
    nearzero evaluate "$run" --fd -n 2000 --solver ddim --grid trailing --steps 50 --out "$run/fd.json"
    nearzero evaluate "$run" --fd -n 2000 --solver dpm --nfe 20 --out "$run/fd-dpm.json"
done
nearzero compare "$out"/ddpm-[012] "$out"/etsdm-[012] --html "$out/compare.html"
