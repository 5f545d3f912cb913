#!/usr/bin/env bash
# Draws the figures of the architectures, which need no weights, and the
# pictures of docs/analysis.md. There, VCMamba-S has random weights; the demo's
# classifier, which `make demo` trains, has learned. Of the photographs
# analysis.md says whose they are.
set -euo pipefail
cd "$(dirname "$0")"
for model in VCMamba:architecture VMamba:vmamba MambaVision:mambavision \
        PlainMamba:plainmamba; do
    python ../../tools/draw_architecture.py --model "${model%:*}" \
        --out "${model#*:}.png"
done

tools=../../tools/analysis
photo=$(python -c '
from pathlib import Path
import sklearn.datasets
print(Path(sklearn.datasets.__file__).parent / "images/china.jpg")')
name=vcmamba_s_8xb128_in1k
python $tools/scan.py paths "$photo" --out paths.png
python $tools/scan.py activations "$photo" --model $name --out activations.png
python $tools/scan.py decay "$photo" --token 3 4 --model $name --out decay.png

demo=(../../configs/demo/vcmamba_demo_digits.py
    ../../work_dirs/demo/classifier/epoch_5.pth)
digits=../../data/demo/classification/val
shown=()
for class in 2 5 8; do
    shown+=("$(find $digits/$class -name '*.png' | sort | head -n 1)")
done
python $tools/grad_cam.py "${shown[@]}" \
    --model "${demo[0]}" --checkpoint "${demo[1]}" --out grad_cam.png
python $tools/receptive_field.py "${demo[@]}" --pictures $digits \
    --out receptive_field.png
(cd ../.. && python tools/analysis/mmpretrain_tools.py confusion-matrix \
    configs/demo/vcmamba_demo_digits.py work_dirs/demo/classifier/epoch_5.pth \
    --out docs/pictures/confusion.png --include-values)

# A quarter of the size.
python -c '
from PIL import Image
for name in "paths", "activations", "decay", "grad_cam", "confusion", \
        "receptive_field":
    with Image.open(f"{name}.png") as picture:
        small = picture.convert("RGB").quantize(256)
    small.save(f"{name}.png", optimize=True)'
