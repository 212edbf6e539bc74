"""Errors about what did not match."""

import jax


def place(path: jax.tree_util.KeyPath) -> str:
    """Returns how errors name the leaf at this path."""
    return jax.tree_util.keystr(path) or "the top"


def refuse(what: str, problems: list[str]) -> None:
    """Raises an error that lists the problems, if there are any."""
    if problems:
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise ValueError(f"{what}. Nothing was changed. What does not match:{listed}")
