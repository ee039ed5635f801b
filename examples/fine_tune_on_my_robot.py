"""A robot that a policy has never met learns its task from a few demonstrations: an adapter of a few megabytes.

    python examples/fine_tune_on_my_robot.py yourname/arm-policy data/mine --robot my_arm --output-dir runs/my-arm

The policy itself stays as it was published, for every other robot too. `priorvla finetune` does more.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import priorvla


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="folder or Hub id of a policy")
    parser.add_argument("dataset", help="LeRobot dataset (folder or Hub id) of the robot, with images and tasks")
    parser.add_argument("--robot", required=True, help="a name for it, which the base does not have")
    parser.add_argument("--preset", choices=("expert", "backbone", "all"), default="expert", help="what LoRA is beside")
    parser.add_argument("--max-steps", type=int, default=150, help="of training, for about 25 demonstrations")
    parser.add_argument("--backbone", default="auto", help="folder of the backbone; auto: what the base names")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/my-robot"))
    options = parser.parse_args()
    settings = {"learning_rate": 2e-3, "backbone_learning_rate": 1e-4, "warmup_steps": 0.1}
    args = priorvla.VLATrainingArguments(str(options.output_dir), max_steps=options.max_steps, **settings)

    # 1. The robot gets inputs and outputs of its own, and statistics of its own data normalise its numbers.
    model = priorvla.PriorVLAModel.from_pretrained(options.base, backbone=options.backbone, dtype="float32")
    bodies = priorvla.PriorVLAProcessor.from_pretrained(options.base).embodiments
    source = priorvla.load_trajectories(options.dataset, frames=True)
    source = replace(source, embodiment=replace(source.embodiment, name=options.robot))
    (robot,) = priorvla.fit_embodiments([source], model.config.expert.chunk_size)
    model.add_embodiment(robot.name, robot.model_action_dim, robot.model_state_dim)
    processor = priorvla.PriorVLAProcessor.from_pretrained(options.base, embodiments=[*bodies, robot])

    # 2. A backbone that stays as it is looks once at every picture, before the training; an adapted one at every step.
    parts = (model.to(args.device), processor, [source], options.output_dir / "features")
    windows = priorvla.observed_windows(*parts, max_cache_gb=20, stride=2, adapted=options.preset != "expert")

    # 3. Low-rank maps beside the layers, and the robot's own parts in full: nothing else is trained, or saved.
    run = {"train_dataset": windows, "processor": processor, "base_model": options.base}
    lora = priorvla.lora_config(model, options.preset, [robot.name], rank=16)
    trainer = priorvla.VLATrainer(model, args, peft_config=lora, **run)
    trainer.train()
    trainer.save_model()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = (options.output_dir / "adapter_model.safetensors").stat().st_size / 1e6
    print(f"trained for {robot.name}: {trained:,} of {model.num_parameters():,} parameters, {size:.2f} MB")

    # 4. The adapter finds its base again, and acts.
    policy = priorvla.PriorVLAPolicy.from_pretrained(args.output_dir, backbone=options.backbone, embodiment=robot.name)
    (observation,) = priorvla.draw_observations([source], processor, count=1)
    print(f"{observation['instruction']!r}: {policy.select_action(observation).round(3)}")


if __name__ == "__main__":
    main()
