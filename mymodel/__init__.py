"""Architectures: one class a file. Add yours beside them and name it in ``conf/model/NAME.yaml``."""
