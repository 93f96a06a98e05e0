#!/usr/bin/env bash
# What a newcomer does, in a new environment that gets nothing but the wheel; prints the seconds of each step.
#   tests/newcomer.sh dist/lrpkernels-*.whl [torch==2.13.0] [FOLDER]
# With a FOLDER everything is kept there; otherwise it is removed in the end.
set -euo pipefail
WHEEL=$(realpath "$1")
TORCH=${2:-torch==2.13.0}
WORK=${3:-$(mktemp -d)}
mkdir -p "$WORK"
[ -n "${3:-}" ] || trap 'rm -rf "$WORK"' EXIT
cd "$WORK" # away from the sources, which must not be imported
unset PYTHONPATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
PY="$WORK/venv/bin/python"

step() { # NAME COMMAND...: quiet unless it fails
  local name=$1 began=$SECONDS
  shift
  if ! "$@" >log.txt 2>&1; then
    printf '%-32s FAILED after %d s: %s\n' "$name" $((SECONDS - began)) "$*"
    tail -30 log.txt
    exit 1
  fi
  printf '%-32s %4d s\n' "$name" $((SECONDS - began))
}
python() { "$PY" "$@"; }
lrpkernels() { "$WORK/venv/bin/lrpkernels" "$@"; }
isnet() { "$WORK/venv/bin/isnet" "$@"; }

cat >photos.py <<'END'
"""Forty bright discs and squares on noise, with masks: data/{images,masks}/{train,validation,test}/{disc,square}/N.png."""
from pathlib import Path

import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
y, x = np.mgrid[:64, :64]
for split, count in (("train", 24), ("validation", 8), ("test", 8)):
    for name in ("disc", "square"):
        for number in range(count):
            row, column = rng.integers(18, 46, 2)
            inside = np.hypot(y - row, x - column) < 12 if name == "disc" else np.maximum(abs(y - row), abs(x - column)) < 11
            pixels = (rng.random((64, 64, 3)) * 90 + 150 * inside[..., None]).clip(0, 255).astype(np.uint8)
            for kind, found in (("images", pixels), ("masks", (255 * inside).astype(np.uint8))):
                file = Path("data", kind, split, name, f"{number}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(found).save(file)
END
cat >explain.py <<'END'
"""A heatmap of an unchanged network, its table of rules, its picture, and its relevance by layer."""
import torch
from monai.networks.nets import DenseNet121

import lrpkernels as lrp

torch.manual_seed(0)
model = DenseNet121(spatial_dims=2, in_channels=3, out_channels=4).eval()
x = torch.rand(2, 3, 64, 64)
logits, heatmap = lrp.LRP(model)(x, target=3)
assert heatmap.shape == x.shape and heatmap.isfinite().all() and logits.shape == (2, 4)
assert "conv" in lrp.LRP(model).explain(x)
lrp.save("picture.png", lrp.picture(model, x, [0, 3], names=["first", "last"]))
with torch.no_grad(), lrp.record(model, x) as tape:
    lrp.save("flow.png", lrp.show_flow(tape, target=3))
END
cat >serve.py <<'END'
"""The exported network without lrpkernels, isnet or torch."""
import json
from pathlib import Path

import numpy as np
import onnxruntime

assert not any(Path(onnxruntime.__file__).parent.parent.glob("torch*")), "torch is here"
(model,) = Path("export").rglob("*.onnx")
json.loads(next(Path("export").rglob("preprocessing.json")).read_text())
session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
shape = [size if isinstance(size, int) else 2 for size in given.shape]
(logits, *_) = session.run(None, {given.name: np.random.default_rng(0).random(shape, np.float32)})
assert logits.shape == (shape[0], 2) and np.isfinite(logits).all()
END

step "environment" python3 -m venv venv
step "torch" "$PY" -m pip install -q --disable-pip-version-check "$TORCH"
step "install lrpkernels" "$PY" -m pip install -q --disable-pip-version-check "$WHEEL"
step "lrpkernels --version" lrpkernels --version
step "check every kernel (doctor)" lrpkernels doctor
step "install isnet's packages" "$PY" -m pip install -q --disable-pip-version-check "lrpkernels[isnet]"
step "explain, picture, flow" python explain.py
step "images" python photos.py
step "check the images" isnet data check data --size 64
step "train" isnet train run --data data --size 64x64 --arch monai:DenseNet121 --arch-arg spatial_dims=2 --arch-arg in_channels=3 \
  --variant selective --epochs 1 --warmup 1 --batch-size 8
step "evaluate" isnet evaluate run --resamples 100
step "explain the run" isnet explain run --out explanation.png
step "report" isnet report run --out report.html
step "predict" isnet predict run data/images/test --out predictions.csv
test "$(wc -l <predictions.csv)" -eq 17
step "install onnx's exporter" "$PY" -m pip install -q --disable-pip-version-check onnx onnxscript onnxruntime
step "export" isnet export run --format onnx --out export
step "environment without torch" python3 -m venv other
step "install onnxruntime" other/bin/python -m pip install -q --disable-pip-version-check onnxruntime numpy
step "load the export without us" other/bin/python serve.py
for file in picture.png flow.png explanation.png report.html predictions.csv; do
  test -s "$file"
done
echo "all steps done in $SECONDS s beside $("$PY" -c 'import torch; print("torch", torch.__version__)')"
