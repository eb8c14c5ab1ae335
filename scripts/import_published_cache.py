"""The paper's table from the authors' published distances: `... folder=input_information published=CIFAR10`."""

from pathlib import Path

from omegaconf import DictConfig

from deepfailguard.pipeline.published import study_published
from entry import script


@script("import_published_cache")
def main(cfg: DictConfig) -> None:
    done = study_published(Path(cfg.folder), cfg.published, list(cfg.sizes))
    for row in done.summary:
        share = "none" if row.rescue_share is None else f"{row.rescue_share:.1%}"
        print(f"{row.setting:>10} N={row.size}: guard {row.accuracy:.4f} majority {row.majority:.4f} share {share}")
    print(done.write(Path(cfg.paths.reports) / "published" / cfg.published))


if __name__ == "__main__":
    main()
