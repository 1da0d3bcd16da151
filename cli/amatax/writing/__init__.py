"""Stage 5, leave it usable: shards, index, config and tokenizer files, model card, record; finished or visibly unfinished."""
