"""Does a policy do its tasks? Closed-loop episodes in a simulator, and how sure one can be of their count.

    python examples/evaluate_a_policy.py runs/policy --tasks drawer-open drawer-close --trials 20
    PYTHONPATH=. python examples/evaluate_a_policy.py runs/policy --environment my_robot:make --tasks "Open the drawer."

Yours is a function of a task and max_episode_steps that makes a Gymnasium environment, whose observations have `state`,
the numbers that the policy was trained with, and `images`, a picture by camera name; its infos say `success`.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

from priorvla import PriorVLAPolicy, evaluate_policy
from priorvla.deployment.evaluation import save_films
from priorvla.hub_cards.intervals import wilson_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="folder or Hub id of a policy")
    parser.add_argument("--environment", default="metaworld", help="or libero, tabletop, ..., or your module:function")
    parser.add_argument("--tasks", nargs="+", default=["drawer-open"], help="names of tasks, or instructions")
    parser.add_argument("--trials", type=int, default=20, help="episodes a task, each with a start of its own")
    parser.add_argument("--max-episode-steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--blind", action="store_true", help="every picture black: the floor to compare with")
    parser.add_argument("--films", type=Path, help="folder for a film of every task's first episode")
    parser.add_argument("--backbone", default="auto", help="folder of the backbone; auto: what the checkpoint names")
    options = parser.parse_args()

    environment = resolve_name(options.environment) if ":" in options.environment else options.environment

    # A function that makes the policy, not the policy: every process makes its own. Trial i starts alike for every
    # policy, whatever the number of processes, so that two policies meet the same scenes.
    result = evaluate_policy(
        partial(PriorVLAPolicy.from_pretrained, options.policy, backbone=options.backbone),
        options.tasks,
        environment=environment,
        trials=options.trials,
        num_workers=options.workers,
        films_per_task=1 if options.films else 0,
        blank_images=options.blind,
        environment_options={"max_episode_steps": options.max_episode_steps},
    )

    # A rate without its interval says little: 8 of 10 are anything between 49 and 94 %.
    for name, tasks in [*((task, [task]) for task in options.tasks), ("all tasks", options.tasks)]:
        successes, trials = result.count(tasks)
        low, high = wilson_interval(successes, trials)
        print(f"{name}: {successes} of {trials} episodes succeeded ({low:.0%} to {high:.0%})")
    if options.films:
        save_films(result, options.films)


if __name__ == "__main__":
    main()
