"""The picture of the report in README.md: python benchmarks/report_picture.py

What `niwaki demo` works on, pruned by the command as it is typed, and the head of its report.html as headless Chromium
shows it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from niwaki.run import demo
from tables import ROOT

PICTURE = ROOT / "docs" / "pictures" / "report.png"
WIDTH, HEIGHT = 1000, 1660
COLOURS = 64


def main() -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory(prefix="niwaki-") as folder:
        place = Path(folder)
        encoder, train, evaluation = demo.prepare(place)
        evaluation.rename(place / "dev.tsv")
        data = ["--train-data", train.name, "--eval-data", "dev.tsv"]
        data += ["--batch-size", str(demo.BATCH_SIZE), "--max-length", str(demo.MAX_LENGTH)]
        trained = ["--train-samples", str(demo.TRAIN_SAMPLES), "--epochs", str(demo.EPOCHS)]
        trained += ["--learning-rate", str(demo.LEARNING_RATE)]
        niwaki(place, "finetune", "--model", encoder.name, *data, *trained, "--out", "my-model")
        seen = ["--calibration-samples", str(demo.CALIBRATION_SAMPLES)]
        niwaki(place, "prune", "structured", "--model", "my-model", *data, *seen, "--flops", "0.5", "--out", "half")
        shot = place / "report.png"
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        flags += ["--force-device-scale-factor=1", f"--screenshot={shot}"]
        subprocess.run([browser, *flags, (place / "half" / "report.html").as_uri()], check=True)
        Image.open(shot).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


def niwaki(place: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "niwaki", *words], cwd=place, check=True)


if __name__ == "__main__":
    main()
