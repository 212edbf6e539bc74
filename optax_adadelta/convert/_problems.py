"""One error for everything that did not match."""


def refuse(what: str, problems: list[str]) -> None:
    """Raises an error that lists the problems, if there are any."""
    if problems:
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise ValueError(f"{what}. Nothing was changed. What does not match:{listed}")
