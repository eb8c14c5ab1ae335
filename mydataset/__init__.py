"""Data sets: one class a file with ``load() -> Splits``. Add yours and name it in ``conf/dataset/NAME.yaml``."""
