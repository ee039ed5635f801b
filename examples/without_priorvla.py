"""Act with a policy on a machine that does not have priorvla: torch, transformers and diffusers are enough.

    python examples/without_priorvla.py yourname/arm-policy --instruction "Open the drawer."

The checkpoint brings its code: it was published with --code. Read it before you trust it, and name the commit that you
read (--revision): what is published there tomorrow is then not run.
"""

import argparse

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="folder or Hub id of a policy with code")
    parser.add_argument("--revision", default="main", help="branch, tag or commit on the Hub")
    parser.add_argument("--backbone", default="auto", help="folder of the backbone; auto: what the checkpoint names")
    parser.add_argument("--embodiment", help="one of the policy's bodies; default: its first")
    parser.add_argument("--instruction", default="Open the drawer.")
    options = parser.parse_args()

    source = {"revision": options.revision, "trust_remote_code": True}
    model = AutoModel.from_pretrained(options.policy, backbone=options.backbone, **source)
    processor = AutoProcessor.from_pretrained(options.policy, **source)
    body = processor.embodiment(options.embodiment or processor.embodiments[0].name)

    # What the robot feels and sees now; here it stands at zero in the dark.
    state = np.zeros(body.state_dim)
    images = {camera: np.zeros((224, 224, 3), np.uint8) for camera in body.cameras}

    # Raw numbers in, raw numbers out: the statistics that the policy was trained with travel with its processor.
    inputs = processor(embodiment=body.name, state=state, images=images, text=options.instruction)
    chunk = model.sample_actions(**inputs, generator=torch.Generator().manual_seed(0))
    actions = processor.decode_actions(chunk, body.name, state=state)[0]
    print(f"{body.name}, {options.instruction!r}: {len(actions)} steps of {', '.join(body.action_names)}")
    print(np.array2string(actions, precision=3, suppress_small=True))


if __name__ == "__main__":
    main()
