"""Prompts, tasks and tokenisation: everything between a file on disk and the rows of a trainer.

* `files`, `sources`: rows of JSON lines, JSON and CSV files, of folders, and of the Hub
* `bad_rows`: rows that cannot be used: one error, or left out and counted
* `prompt_room`, `white_space`: prompts beyond the context, or with other white space
* `tokenization`: prompt and output strings (or ids) to `input_ids`, `labels`, `response_mask`
* `prompts`: prompt templates as text files that carry their stop strings
* `tasks`: a task owns where its examples come from, how an answer is graded, and its default prompt
* `traces`: prompts with written responses, for supervised fine-tuning, and what selects them
* `trace_doctor`: what is wrong with traces, and how long they are
* `rows`: examples and a prompt, or traces, to the `datasets.Dataset` that a trainer reads
* `packing`: instruction data in the template of `alpaca`, end to end, cut into chunks
* `preferences`: pairs of a chosen and a rejected response
* `embedded_tokenizer`: the tokenizer of the small model of the embedded task
"""
