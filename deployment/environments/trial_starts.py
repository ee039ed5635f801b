"""Which start a trial of an evaluation has, in the one number that an environment is reset with."""

from __future__ import annotations

TRIALS_OF_A_SEED = 100_003  # prime: no two seeds that people use have a start in common


def start_seed(seed: int, trial: int) -> int:
    """What trial number `trial` of an evaluation of `seed` resets its environment with."""
    return seed * TRIALS_OF_A_SEED + trial


def trial_of(reset_seed: int) -> int:
    """The trial's number, whatever the evaluation's seed: environments with numbered starts take the start from it."""
    return reset_seed % TRIALS_OF_A_SEED


__all__ = ["start_seed", "trial_of"]
