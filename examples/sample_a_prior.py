"""What does an action prior know? Its bodies, and motion that it makes up for one of them out of noise alone.

    python examples/sample_a_prior.py yourname/arm-prior --embodiment so101 --plot chunks.png --save chunks.npz

It has seen no picture and was told no task: these are the ways in which such a body moves.
"""

import argparse

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import AutoModel, AutoProcessor

import priorvla  # after this import the Auto classes know our models
from priorvla.hub_cards.embodiment_facts import made_up_state


def plot(chunks: np.ndarray, names: list[str], control_rate: float, file: str) -> None:
    figure = Figure(figsize=(7, 1.6 * len(names)), layout="constrained")
    seconds = np.arange(chunks.shape[1]) / control_rate
    for dim, axes in enumerate(figure.subplots(len(names), squeeze=False)[:, 0]):
        axes.plot(seconds, chunks[:, :, dim].T)
        axes.set(ylabel=names[dim], xlabel="seconds")
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prior", help="folder or Hub id of an action prior")
    parser.add_argument("--embodiment", help="one of the prior's bodies; default: its first")
    parser.add_argument("--samples", type=int, default=4, help="chunks")
    parser.add_argument("--seed", type=int, default=0, help="the same one gives the same chunks")
    parser.add_argument("--plot", help="a picture of the chunks, for example chunks.png")
    parser.add_argument("--save", help="an .npz file for them")
    options = parser.parse_args()

    model, processor = AutoModel.from_pretrained(options.prior), AutoProcessor.from_pretrained(options.prior)
    if not isinstance(model, priorvla.ActionPriorModel):
        parser.error(f"{options.prior} does not move out of noise alone: it wants to see, and is no action prior")
    for known in processor.embodiments:
        print(f"{known.name}: {', '.join(known.action_names)}; {known.control_rate:g} Hz")
    body = processor.embodiment(options.embodiment or processor.embodiments[0].name)

    # Every chunk is a short trajectory, and the model's numbers are normalised: decoding brings back the robot's units.
    start = np.tile(made_up_state(body), (options.samples, 1))  # for priors that know, or move relative to, the state
    inputs = processor(embodiment=body.name, state=start)
    samples = model.sample_actions(**inputs, generator=torch.Generator().manual_seed(options.seed))
    chunks = processor.decode_actions(samples, body.name, state=start)
    print(f"\n{options.samples} chunks of {body.name}, {chunks.shape[1] / body.control_rate:.2g} s each; the first:")
    print(np.array2string(chunks[0], precision=3, suppress_small=True))
    if options.plot:
        plot(chunks, body.action_names, body.control_rate, options.plot)
    if options.save:
        np.savez(options.save, chunks=chunks, names=body.action_names, control_rate=body.control_rate)


if __name__ == "__main__":
    main()
