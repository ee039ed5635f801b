"""A dry run as text."""

from __future__ import annotations

from textwrap import fill

from .dry_run import DryRun

FRAMES = 100_000  # the size of a feature cache is told for so many
COUNTED = (
    "Taken from a forward and backward pass of the real model on the meta device. Not counted: what kernels need for a "
    "moment, the allocator's spare room, the framework (about 1 GB on a GPU), and the few tokens that a prompt format "
    "puts around images and words."
)


def dry_run_table(run: DryRun, tflops: float) -> str:
    """What `run` found, line by line; times are for `tflops`, 10^12 operations a second that are sustained.

    Raises ValueError when `tflops` is not positive.
    """
    if not tflops > 0:
        raise ValueError(f"--tflops {tflops} must be positive")
    notes = (COUNTED, *run.not_counted, f"Times assume that {tflops:g} TFLOP/s are sustained and data are there.")
    parts = [_what(run), _parameters(run), _memory(run), _time(run, tflops)]
    parts.append([fill(" ".join(notes), 110, initial_indent="  ", subsequent_indent="  ")])
    return "\n\n".join("\n".join(lines) for lines in parts)


def _what(run: DryRun) -> list[str]:
    config, expert = run.config, run.config.expert
    rung = "policy (rung 3)" if config.language else "vision-action prior (rung 2)"
    layers = f"{run.layers_kept} of {run.layers}" if run.layers_kept < run.layers else f"all {run.layers}"
    pixels = " x ".join(map(str, run.image_size))
    cameras = "1 camera" if config.num_cameras == 1 else f"{config.num_cameras} cameras"
    bodies = [f"{action} action and {state} state dims" for action, state in zip(*_dims(run), strict=True)]
    return [
        f"{run.recipe}: {rung}, host {config.fusion}",
        _line("backbone", f"{run.backbone} ({run.origin}), {config.backbone_training}"),
        _line("its layers", f"{layers}, read at {', '.join(map(str, config.taps))}"),
        _line("images", f"{cameras}, {pixels} pixels, {run.tokens_per_image} tokens each"),
        _line("words", f"{run.words} tokens" if config.language else "none are read"),
        _line("robot", f"{', '.join(bodies)}, chunks of {expert.chunk_size}"),
        _line("windows a step", str(run.windows) if run.passes == 1 else f"{run.passes} times {run.windows}"),
    ]


def _dims(run: DryRun) -> tuple[list[int], list[int]]:
    return run.config.expert.action_dims, run.config.expert.state_dims


def _parameters(run: DryRun) -> list[str]:
    lines = [_row("parameters, M", "trained", "frozen")]
    counts = {part: both for part, both in run.parameters.items() if any(both)}
    counts["together"] = (sum(both[0] for both in counts.values()), sum(both[1] for both in counts.values()))
    return [*lines, *(_row(part, *(f"{count / 1e6:,.2f}" for count in both)) for part, both in counts.items())]


def _memory(run: DryRun) -> list[str]:
    sizes = {what: size for what, size in run.memory.items() if size} | {"together": run.memory_bytes}
    lines = [_row("memory", "GB"), *(_row(what, f"{size / 1e9:.2f}") for what, size in sizes.items())]
    size = f"{run.frame_bytes / 1e6:.2f} MB a frame, {run.frame_bytes * FRAMES / 1e9:,.0f} GB for {FRAMES:,} frames"
    return [*lines, _line("feature cache", size if run.cached else "none, images go through the backbone")]


def _time(run: DryRun, tflops: float) -> list[str]:
    kinds = {
        "a step, from images": run.step_flops,
        "a step, from features": run.step_flops_without_backbone,
        "a frame into the cache": run.frame_flops,
    }
    lines = [_row("computation", "TFLOP", "seconds")]
    for kind, flops in kinds.items():
        if flops is not None:
            taken = " <- this recipe's" if flops == run.flops else ""
            lines.append(_row(kind, f"{flops / 1e12:.3f}", f"{flops / 1e12 / tflops:.4f}") + taken)
    return lines


def _line(name: str, value: str) -> str:
    return f"  {name:<26}{value}"


def _row(name: str, *cells: str) -> str:
    return f"  {name:<26}{''.join(f'{cell:>12}' for cell in cells)}"


__all__ = ["dry_run_table"]
