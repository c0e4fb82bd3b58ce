"""Where metrics go: the JSONL file is the record, everything else is a view of it."""
