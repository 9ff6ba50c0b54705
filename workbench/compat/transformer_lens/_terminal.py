"""What the few classic functions print whose purpose is to print."""


def say(text: str) -> None:
    """One line on the terminal, as it is."""
    from rich.console import Console

    Console(soft_wrap=True).print(text, markup=False, highlight=False)
