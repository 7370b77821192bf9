"""The Alpaca template: an instruction and the response to it as one text."""

ALPACA_TEMPLATE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n"
    "### Response:\n{response}"
)


def format_alpaca(prompt: str, response: str = "") -> str:
    """Returns prompt and response in the template, both character by character as given.

    Without a response it is what a tuned model is asked with: all that stands before the response.

    Source: Stanford Alpaca's prompt without input. Departure: there the response follows
    "### Response:" at once; here, as in the handout, after one line break.
    """
    return ALPACA_TEMPLATE.format(prompt=prompt, response=response)
