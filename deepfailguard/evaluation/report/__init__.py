"""Reports: what an evaluation or a study found, as a page with pictures, tables and plain files."""
