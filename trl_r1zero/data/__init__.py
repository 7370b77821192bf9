"""Prompts, tasks and tokenisation: everything between a file on disk and the rows of a trainer.

* `tokenization`: prompt and output strings (or ids) to `input_ids`, `labels`, `response_mask`
* `prompts`: prompt templates as text files that carry their stop strings
* `tasks`: a task owns where its examples come from, how an answer is graded, and its default prompt
* `rows`: examples and a prompt to the `datasets.Dataset` that a trainer reads
* `embedded_tokenizer`: the tokenizer of the small model of the embedded task
"""
