"""Share a checkpoint, as a training left it, and find it again: on the Hub, or in a folder to look at first.

    python examples/publish_a_checkpoint.py runs/prior ./shared/arm-prior --license apache-2.0
    python examples/publish_a_checkpoint.py runs/prior yourname/arm-prior --license apache-2.0

A Hub id needs a token (`hf auth login`). Nobody but you sees the repository until you say --public. All files go up in
one commit, and none of them when one holds a secret or a path of your machine.
"""

import argparse
from pathlib import Path

from huggingface_hub import CommitInfo
from transformers import AutoConfig, AutoModel, AutoProcessor

import priorvla
from priorvla.hub_cards.checkpoints import kind_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a prior or a policy")
    parser.add_argument("destination", help="a Hub id (yourname/name), or a new folder (./name)")
    parser.add_argument("--license", required=True, help="of the weights, as the Hub calls it: apache-2.0, mit, ...")
    parser.add_argument("--base-model", help="Hub id of what the training started from")
    parser.add_argument("--public", action="store_true", help="everybody sees it")
    parser.add_argument("--code", action="store_true", help="it loads without priorvla too: see without_priorvla.py")
    options = parser.parse_args()

    # 1. Weights, processor, bodies, card, metrics and report, together or not at all.
    published = priorvla.publish_checkpoint(
        options.checkpoint,
        options.destination,
        license=options.license,
        base_model=options.base_model,
        private=not options.public,
        code=options.code,
    )
    print(f"published: {published}")

    # 2. Others find it by its bodies, with what its card tells; nothing is downloaded for that.
    version = {}
    if isinstance(published, CommitInfo):
        kind = kind_of(AutoConfig.from_pretrained(options.checkpoint))
        for found in priorvla.list_priors(kind=kind, search=options.destination.partition("/")[2]):
            told = ", ".join(f"{name} {value:.3g}" for name, value in found.metrics.items())
            print(f"found: {found.name}, {found.license}, knows {', '.join(found.embodiments)}; {told or 'no metrics'}")
        version = {"revision": published.oid}  # who names the commit gets these weights, whatever is published later

    # 3. Whoever may see it loads it by its name.
    config = AutoConfig.from_pretrained(options.destination, **version)  # of an adapter, AutoModel alone asks the base
    model = AutoModel.from_pretrained(options.destination, config=config, **version)
    processor = AutoProcessor.from_pretrained(options.destination, **version)
    bodies = ", ".join(body.name for body in processor.embodiments)
    print(f"loaded: {type(model).__name__} of {model.num_parameters() / 1e6:.1f} M parameters for {bodies}")


if __name__ == "__main__":
    main()
