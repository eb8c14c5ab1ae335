"""What each fault does to the accuracy of each compact family.

    python benchmarks/faults.py [--quick] [--json PATH] [--dataset fashion_mnist] [--limit 12500]

Versions are filed in the pool, so a second run takes seconds and an interrupted one goes on. `--quick` trains two
families for two epochs on a few digits.
"""

import argparse
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from deepfailguard.data.base import Splits
from deepfailguard.device import resolve_device
from deepfailguard.errors import DataNotFoundError, DeepfailguardError
from deepfailguard.pipeline.evidence import with_test_faults
from deepfailguard.pipeline.training import TrainRequest, accuracy, train_version
from deepfailguard.training.trainer import Trainer
from deepfailguard.versions.pool import Pool

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `mydataset` and `mymodel` are found
FAMILIES = ["compact_resnet", "compact_alexnet", "compact_densenet", "compact_vgg", "compact_squeezenet"]
FAULTS = sorted(path.stem for path in (ROOT / "conf" / "fault").glob("*.yaml"))
SOUND = "(sound)"


@dataclass(frozen=True)
class Loaded:
    """A data set source that has its splits already."""

    splits: Splits

    def load(self) -> Splits:
        """The splits."""
        return self.splits


class Bench:
    """Measures test accuracy, fault by fault and family by family."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.limit = 300 if options.quick else options.limit
        self.dataset = "digits" if options.quick else options.dataset
        self.epochs = 2 if options.quick else 5
        self.device = resolve_device("auto")
        self.pool = Pool(ROOT / "mymodel" / "trained")
        self.trainer = Trainer(self.device, quiet=options.quick)
        self.splits: Splits = instantiate(self.node("compact_vgg").dataset, _convert_="all").load()

    def node(self, model: str, fault: str = "[]") -> Any:
        """The composed configuration of a training."""
        overrides = [f"dataset={self.dataset}", f"dataset.limit={self.limit}", f"model={model}", f"fault={fault}"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train_model", [*overrides, "training=quick", f"training.epochs={self.epochs}"])

    def measure(self, model: str, fault: str) -> float:
        """Test accuracy of a family under a fault."""
        cfg = self.node(model, "[]" if fault == SOUND else fault)
        faults = [instantiate(node, _convert_="all") for node in cfg.get("faults", {}).values()]
        on_inputs = [f for f in faults if f.acts_on == "test_data"]
        splits = with_test_faults(self.splits, on_inputs, cfg.seed)
        trained_with = [f for f in faults if f not in on_inputs]
        request = TrainRequest(
            Loaded(self.splits), instantiate(cfg.model), instantiate(cfg.training), trained_with, cfg.seed
        )
        card = train_version(request, self.pool, self.trainer).card
        return accuracy(self.pool.load(card, self.device).model, splits.test)


def row_of(bench: Bench, fault: str, families: list[str]) -> dict[str, Any]:
    """Accuracies of one fault; where it does not apply the error stands in its place."""
    row: dict[str, Any] = {"fault": fault}
    for family in families:
        try:
            row[family] = round(bench.measure(family, fault), 4)
        except DataNotFoundError:
            row[family] = "no data"
        except DeepfailguardError as error:
            row[family] = type(error).__name__
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table; accuracies in per cent."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|"]
    for row in rows:
        cells = [f"{100 * value:.1f}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two families on a few digits")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--limit", type=int, default=12500, help="training and calibration images")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    bench, families = Bench(options), FAMILIES[:2] if options.quick else FAMILIES
    rows = []
    for fault in [SOUND, *FAULTS]:
        rows.append(row_of(bench, fault, families))
        print(markdown(rows).splitlines()[-1] if len(rows) > 1 else markdown(rows), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
