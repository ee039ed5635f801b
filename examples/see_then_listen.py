"""See, then listen: what knows how a body moves learns to see without a word, and then to do what it is told.

python examples/see_then_listen.py demonstrations --prior runs/my-arm/prior --output-dir runs/my-policy
"""

import argparse
from dataclasses import replace
from pathlib import Path

import priorvla
from priorvla.configuration.backbone_reference import fields_for_backbone
from priorvla.modeling_priorvla.backbone import describe_backbone
from priorvla.modeling_priorvla.packaged_backbones import PACKAGED_BACKBONES, packaged_backbone_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="LeRobot dataset (folder or Hub id) of the prior's body, with images and tasks")
    parser.add_argument("--prior", required=True, help="folder or Hub id of an action prior")
    parser.add_argument("--backbone", type=Path, help="folder of a backbone; default: the packaged one")
    parser.add_argument("--max-steps", type=int, default=1000, help="of training, on each rung")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/see-then-listen"))
    options = parser.parse_args()

    # 1. The demonstrations, the bodies as the prior knows them, now with cameras, and how the config names a backbone.
    source = priorvla.load_trajectories(options.dataset, frames=True)
    body, bodies = source.embodiment, priorvla.PriorVLAProcessor.from_pretrained(options.prior).embodiments
    bodies = [replace(known, cameras=body.cameras) for known in bodies]
    place, name = ("hub", options.backbone.resolve().name) if options.backbone else ("package", *PACKAGED_BACKBONES)
    folder = options.backbone or packaged_backbone_folder(name)
    fields = fields_for_backbone(describe_backbone(folder, source=place, name=name))
    fields["num_cameras"] = len(body.cameras)

    # 2. See: every frame is encoded once, before training, and nothing of what was said is read.
    args = priorvla.VisionActionPriorTrainingArguments(str(options.output_dir / "sight"), max_steps=options.max_steps)
    model = priorvla.PriorVLAModel.from_action_prior(options.prior, language=False, fusion="cross", **fields)
    model.attach_backbone(folder).to(args.device)
    windows = priorvla.TrajectoryDataset([source], bodies, model.config.expert.chunk_size)
    processor = priorvla.PriorVLAProcessor.for_backbone(folder, bodies, chunk_size=windows.chunk_size)
    parts = (windows, [source], model.backbone, processor, options.output_dir / "features")
    seen = priorvla.ObservationDataset(*parts, taps=model.config.taps, language=False)
    trainer = priorvla.VisionActionPriorTrainer(model, args, train_dataset=seen, processor=processor)
    trainer.train()
    trainer.save_model()

    # 3. Listen: layers that read come between those that see, and change nothing before they have learned something.
    model = priorvla.PriorVLAModel.from_vision_action_prior(args.output_dir)
    args = priorvla.VLATrainingArguments(str(options.output_dir / "policy"), max_steps=options.max_steps)
    heard = priorvla.ObservationDataset(*parts, taps=model.config.taps)
    trainer = priorvla.VLATrainer(model, args, train_dataset=heard, processor=processor)
    trainer.train()
    trainer.save_model()
    policy = priorvla.PriorVLAPolicy.from_pretrained(args.output_dir, backbone=folder, embodiment=body.name)
    print(priorvla.language_sensitivity(policy, priorvla.draw_observations([source], processor)).describe())


if __name__ == "__main__":
    main()
