"""The report on a trained action prior, for somebody who has not read the paper: report.html and report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..hub_cards.motion_plots import chunk_lines, cumulative_shares, intervals_by_row, power_spectra, velocity_by_time
from ..hub_cards.plots import loss_curves
from ..hub_cards.report import Report, format_value
from ..hub_cards.versions import installed_versions
from .chunk_distances import Bootstrapped
from .prior_quality import BodyQuality, PriorQuality

PREDICTORS = {
    "own": "prior, told the latent",
    "null": "prior, told nothing",
    "gaussian": "mean and spread only",
    "zero": "no velocity",
}
RIVALS = {
    "reconstruction": "prior",
    "pca": "principal components",
    "interpolation": "straight lines",
    "mean_chunk": "mean chunk",
}


HARDEST_DIMS = 3  # a body, that are shown


def write_prior_report(
    folder: str | Path, quality: PriorQuality, history: Sequence[Mapping[str, float]] = ()
) -> tuple[Path, Path]:
    """Writes `report.html` and `report.json` into `folder` and returns their paths.

    `history`: the Trainer's log lines, for the curve of the training loss.
    """
    folder = Path(folder)
    content = {"kind": "action-prior", **quality.to_dict(), "versions": installed_versions()}
    file, partial = folder / "report.json", folder / ".report.json.partial"
    folder.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)
    return _page(quality, history).write(folder / "report.html"), file


def told_interval(number: Bootstrapped, digits: int = 3) -> str:
    """`0.031 [0.027, 0.036]`, to so many significant digits."""
    low, high = number.interval
    return f"{number.value:.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


def _page(quality: PriorQuality, history: Sequence[Mapping[str, float]]) -> Report:
    bodies = quality.bodies
    count = f"{len(bodies)} bodies" if len(bodies) > 1 else bodies[0].name if bodies else "no held-out motion"
    windows = sum(body.windows for body in bodies)
    page = Report("What this action prior knows", f"{count}, measured on {windows} windows that it was not trained on")
    _in_short(page, bodies)
    if bodies:
        _velocity(page, bodies)
    whole = [body for body in bodies if body.reconstruction is not None]
    if whole:
        _reconstruction(page, whole)
        _resemblance(page, whole)
        _smoothness(page, [body for body in whole if body.smoothness is not None])
        _latent(page, whole)
    _training(page, history)
    _measured(page, quality)
    return page


def _in_short(page: Report, bodies: Sequence[BodyQuality]) -> None:
    page.section("In short")
    page.note(
        "An action prior knows how robots move, not where anything is: it has seen states and actions, no image and no "
        "instruction. What it makes is plausible motion, never a response to a scene. Whether it helps a policy is "
        "decided by a policy trained from it against the same policy without it."
    )
    if not bodies:
        page.text("No episode was held out (`--holdout 0`, or too few episodes), so nothing was measured.")
    page.text("\n".join(f"- {summary(body)}" for body in bodies))


def summary(body: BodyQuality) -> str:
    """A body's headline numbers as sentences."""
    said = [
        f"**{body.name}** ({len(body.action_names)} action dims at {format_value(float(body.control_rate))} Hz; "
        f"{body.windows} windows of {body.episodes} episodes)."
    ]
    recon, alike = body.reconstruction, body.resemblance
    if recon is None or alike is None:
        return (
            f"{said[0]} Held-out or training motion has no two whole chunks: only the velocity loss could be measured."
        )
    errors = recon.errors
    share = errors["reconstruction"].value / max(errors["mean_chunk"].value, 1e-12)
    said.append(
        f"A chunk comes back from its latent to within {told_interval(errors['reconstruction'])} (raw action units), "
        f"{share:.0%} of what the mean chunk misses by. {recon.latent_dim} principal components miss by "
        f"{errors['pca'].value:.3g}: {_compared(recon.gains['pca'])}."
    )
    said.append(
        f"Samples made up from nothing lie {told_interval(alike.energy, 2)} from held-out motion and come near "
        f"{alike.coverage.value:.0%} of it; training chunks, replayed, lie {told_interval(alike.training_energy, 2)} "
        f"away and come near {alike.training_coverage.value:.0%}."
    )
    if body.smoothness is not None and np.isfinite(body.smoothness.jerk_ratio):
        said.append(f"The samples' jerk is {float(f'{body.smoothness.jerk_ratio:.2g}'):g} times that of the data.")
    return " ".join(said)


def _compared(gain: Bootstrapped) -> str:
    """What may be said of a rival whose error minus the prior's is `gain`."""
    if gain.spans_zero:
        return "these episodes do not tell the two apart"
    return "the prior errs less" if gain.value > 0 else "the prior errs more"


def _velocity(page: Report, bodies: Sequence[BodyQuality]) -> None:
    page.section("Does it know the motion?")
    page.text(
        "A chunk is mixed with noise and the prior is asked in which direction the noise lies: this is what it was "
        "trained for. Smaller is better; what a number means, the rivals say. *Mean and spread only* knows how large "
        "each action usually is at each step and nothing of how they hang together: below it, the prior knows motion. "
        "*Told the latent*, it was given the short summary of this very chunk; *told nothing*, it has to go by motion "
        "in general. Near pure noise nobody can know much; near the action everything hangs on detail."
    )
    page.figure(
        velocity_by_time(
            {body.name: {label: body.velocity.by_time[key] for key, label in PREDICTORS.items()} for body in bodies},
            bodies[0].velocity.times,
        ),
        "Squared error of the velocity in normalised units, in ten bins of flow time: 0 is the action, 1 pure noise.",
    )
    page.table(
        ["body", *PREDICTORS.values(), "share the latent takes away"],
        [
            [
                body.name,
                told_interval(body.velocity.own),
                told_interval(body.velocity.null),
                *(format_value(float(body.velocity.by_time[key].mean())) for key in ("gaussian", "zero")),
                f"{body.velocity.reliance.value:.0%}",
            ]
            for body in bodies
        ],
        "Means over all flow times, evenly. In brackets: 95 % intervals, from drawing the held-out episodes again.",
    )


def _reconstruction(page: Report, bodies: Sequence[BodyQuality]) -> None:
    sizes = [body.reconstruction.latent_dim for body in bodies if body.reconstruction is not None]
    page.section(f"Can a chunk be told in {sizes[0]} numbers?")
    page.text(
        f"The prior sums up a chunk in a latent of {sizes[0]} numbers and plays it back from there. Two rivals get as "
        "many numbers and no network: *principal components*, the best linear summary of the training chunks, and "
        "*straight lines* between evenly spaced points, fitted to the chunk itself. The *mean chunk* gets none. The "
        "latent is noised in training on purpose, so the prior need not copy a chunk to be a good prior; but an error "
        "near the mean chunk's says that the latent holds little."
    )
    rows, table = {}, []
    for body in bodies:
        recon = body.reconstruction
        assert recon is not None
        floor = max(recon.errors["mean_chunk"].value, 1e-12)
        rows[body.name] = {
            RIVALS[name]: (error.value / floor, error.interval[0] / floor, error.interval[1] / floor)
            for name, error in recon.errors.items()
        }
        worth = "all are worse" if recon.components is None else str(recon.components)
        rivals = [f"{recon.errors[name].value:.3g}" if name in recon.errors else "–" for name in list(RIVALS)[1:]]
        table.append([body.name, told_interval(recon.errors["reconstruction"]), *rivals, worth])
    page.figure(
        intervals_by_row(rows, "mean absolute error, as a share of the mean chunk's", percent=True),
        "Smaller is better. Errors in raw units over all action dims, each body by its own mean chunk.",
    )
    page.table(
        ["body", *RIVALS.values(), "components with the prior's error"],
        table,
        "Mean absolute error in raw action units, with a 95 % interval over episodes. The last column: how many "
        "principal components it takes to err no more than the prior.",
    )
    exact = [body.name for body in bodies if body.reconstruction is not None and body.reconstruction.exact_pca]
    if exact:
        page.text(
            f"Of {', '.join(exact)} a chunk has no more numbers than the latent, so principal components lose nothing "
            "there and are no rival."
        )
    _hardest_dims(page, bodies)


def _hardest_dims(page: Report, bodies: Sequence[BodyQuality]) -> None:
    rows = []
    for body in bodies:
        recon = body.reconstruction
        assert recon is not None
        ours, mean = recon.by_dim["reconstruction"], recon.by_dim["mean_chunk"]
        shares = np.divide(ours, mean, out=np.zeros_like(ours), where=mean > 0)
        for dim in np.argsort(-shares, kind="stable")[:HARDEST_DIMS]:
            rows.append([body.name, body.action_names[dim], float(ours[dim]), float(mean[dim]), f"{shares[dim]:.0%}"])
    page.table(
        ["body", "action dim", "prior", "mean chunk", "share"],
        rows,
        "The dims that come back worst, beside what the mean chunk misses by, in raw units; all are in report.json.",
    )


def _resemblance(page: Report, bodies: Sequence[BodyQuality]) -> None:
    page.section("Do its samples look like the data?")
    page.text(
        "Here the prior is told nothing and makes motion up. **Energy distance** is 0 when samples and held-out chunks "
        "could not be told apart and 1 when they have nothing to do with each other. *Training chunks* in the samples' "
        "place are the yardstick: no prior can be closer than real motion of other episodes. **Coverage** is the share "
        "of held-out chunks that have a sample in their neighbourhood: low coverage means that some motion is never "
        "made. **Density** near 1 means that samples lie where the data lie; well below 1 they stray, well "
        "above they crowd where the data are densest. **Copies** is the share of samples that are unusually near a "
        "training chunk: 5 % by chance, near 100 % it replays."
    )
    measured = [(body.name, body.resemblance) for body in bodies if body.resemblance is not None]
    rows = {
        name: {
            "samples": (alike.energy.value, *alike.energy.interval),
            "training chunks": (alike.training_energy.value, *alike.training_energy.interval),
        }
        for name, alike in measured
    }
    page.figure(
        intervals_by_row(rows, "energy distance to held-out motion", floors={n: alike.floor for n, alike in measured}),
        "Nearer to zero is better. Shaded: what two halves of the held-out motion itself show 95 % of the time; within "
        "it a distance says nothing. Estimates scatter, so one near zero may come out below it.",
    )
    page.table(
        ["body", "samples", "training chunks", "floor", "told apart"],
        [
            [
                name,
                told_interval(alike.energy, 2),
                told_interval(alike.training_energy, 2),
                alike.floor,
                "no" if (alike.energy - alike.training_energy).spans_zero else "yes",
            ]
            for name, alike in measured
        ],
        "Energy distance with 95 % intervals. Told apart: whether the interval of the difference between samples and "
        "training chunks leaves zero out.",
    )
    page.table(
        ["body", "coverage", "coverage of training chunks", "density", "copies"],
        [
            [
                name,
                f"{alike.coverage.value:.0%}",
                f"{alike.training_coverage.value:.0%}",
                alike.density,
                f"{alike.copies:.0%}",
            ]
            for name, alike in measured
        ],
    )
    for body in bodies:
        page.figure(
            chunk_lines(body.held_out_examples, body.sample_examples, body.model_action_names, body.control_rate),
            f"{body.name}: {len(body.sample_examples)} samples over as many held-out chunks, normalised.",
        )


def _smoothness(page: Report, bodies: Sequence[BodyQuality]) -> None:
    if not bodies:
        return
    page.section("Is it smooth?")
    page.text(
        "Jerk is how abruptly acceleration changes. Samples should be as smooth as the data, not smoother: a ratio of "
        "1 is right, well above 1 they tremble, well below 1 they smear. The spectrum says at which frequencies; "
        "*fast power* compares the upper half of them."
    )
    measured = [(body, body.smoothness) for body in bodies if body.smoothness is not None]
    page.table(
        ["body", "jerk, samples over data", "fast power, samples over data"],
        [[body.name, smooth.jerk_ratio, smooth.fast_ratio] for body, smooth in measured],
    )
    page.figure(
        power_spectra(
            {body.name: (smooth.frequencies, smooth.data_power, smooth.sample_power) for body, smooth in measured}
        ),
        "Power by frequency, normalised units: the two lines should lie on each other.",
    )


def _latent(page: Report, bodies: Sequence[BodyQuality]) -> None:
    page.section("Is the latent used?")
    page.text(
        "Two things can go wrong: the latent collapses (all chunks get nearly the same), or the decoder ignores it. "
        "*Dims in use* counts the directions that latents of held-out chunks really vary in. *Loss taken away* is how "
        "much of the velocity loss being told the latent saves, and *with a wrong latent* what the loss becomes when "
        "it is another chunk's: well above 100 % the decoder listens. *Decided by the latent* is the share of what "
        "differs between samples that the latent fixes; the rest is chance."
    )
    rows = []
    for body in bodies:
        latent, velocity = body.latent, body.velocity
        assert latent is not None
        wrong = float(velocity.by_time["other"].mean()) / max(velocity.own.value, 1e-12)
        rows.append(
            [
                body.name,
                f"{latent.effective_rank:.1f} of {latent.dims}",
                f"{velocity.reliance.value:.0%}",
                f"{wrong:.0%}",
                f"{latent.determined:.0%}",
            ]
        )
    page.table(["body", "dims in use", "loss taken away", "with a wrong latent", "decided by the latent"], rows)
    page.figure(
        cumulative_shares({body.name: body.latent.variance_shares for body in bodies if body.latent is not None}),
        "The faster a line rises, the fewer directions are used.",
    )


def _training(page: Report, history: Sequence[Mapping[str, float]]) -> None:
    curves = {}
    for key, label in (("loss", "training"), ("eval_loss", "held out")):
        points = [(line["step"], line[key]) for line in history if key in line]
        if points:
            curves[label] = ([step for step, _ in points], [value for _, value in points])
    if curves:
        page.section("Training")
        page.figure(loss_curves(curves, ylabel="L_recon", log_y=True), "The loss against training steps.")


def _measured(page: Report, quality: PriorQuality) -> None:
    page.section("How it was measured")
    if any(body.few_episodes for body in quality.bodies):
        names = ", ".join(body.name for body in quality.bodies if body.few_episodes)
        page.note(
            f"Of {names} fewer than eight episodes were held out. Their episodes were cut into stretches to get any "
            "interval at all: these intervals are too narrow. Hold out more (`--holdout`) before you rely on them."
        )
    page.text(
        "Windows of one episode overlap, so an episode counts as one draw: pairs within an episode are left out of "
        "distances, and intervals come from drawing episodes again. Bodies cannot be compared by raw errors, which "
        "have their own units, nor by velocity losses, which depend on how their actions are normalised."
    )
    page.table(
        ["body", "action dims", "rate, Hz", "held-out windows", "episodes"],
        [
            [body.name, len(body.action_names), float(body.control_rate), body.windows, body.episodes]
            for body in quality.bodies
        ],
    )
    page.facts({"seed": quality.seed, **installed_versions()})


def read_report(folder: str | Path) -> dict[str, Any]:
    """A prior's report.json, or nothing when the folder has none that is about an action prior."""
    file = Path(folder) / "report.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content if content.get("kind") == "action-prior" else {}


__all__ = ["PREDICTORS", "RIVALS", "read_report", "summary", "told_interval", "write_prior_report"]
