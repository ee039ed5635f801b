"""How large the adapter of a new robot is: the files that are saved, by host and preset.

    python benchmarks/adapter_size.py --output-dir runs/adapter_size

Bases have random weights, which sizes do not depend on, and the default expert (that of the small recipe too) over the
packaged dual encoder. The new robot has seven action and seven state dims; its own parts are in the adapter in full.
Beside each adapter stands what a whole checkpoint of the same policy takes, its frozen backbone not counted.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from report_file import write_report
from rung2_speed import BACKBONE, backbone_fields
from transformers import set_seed

from priorvla.configuration.configuration_priorvla import FUSIONS, PriorVLAConfig
from priorvla.modeling_priorvla.adapters import add_adapter, save_adapter
from priorvla.modeling_priorvla.backbone import Backbone, load_backbone
from priorvla.modeling_priorvla.modeling_priorvla import PriorVLAModel
from priorvla.modeling_priorvla.packaged_backbones import packaged_backbone_folder
from priorvla.training.adapter_presets import lora_config
from priorvla.training.finetune_options import ADAPTER_PRESETS

BODY = {"embodiments": ["first_arm"], "action_dims": [7], "state_dims": [7]}
LIMIT = 20  # megabytes


def policy(fusion: str, backbone: Backbone) -> PriorVLAModel:
    """A base that knows one robot, with a place for a second."""
    set_seed(0)
    config = PriorVLAConfig(fusion=fusion, expert=BODY, **backbone_fields(backbone, fusion))
    model = PriorVLAModel(config).attach_backbone(backbone)
    model.add_embodiment("new_arm", 7, 7)
    return model


def megabytes(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.iterdir()) / 1e6, 2)


def measure(fusion: str, backbone: Backbone, rank: int) -> dict[str, float]:
    """Megabytes of the adapter of every preset, and of the whole policy."""
    sizes = {}
    for preset in ADAPTER_PRESETS:
        model = policy(fusion, backbone)
        add_adapter(model, lora_config(model, preset, ["new_arm"], rank=rank), base="owner/base")
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(model, folder)
            sizes[preset] = megabytes(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        policy(fusion, backbone).save_pretrained(folder)
        sizes["whole policy"] = megabytes(Path(folder))
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/adapter_size"))
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    options = parser.parse_args()
    backbone = load_backbone(None, packaged_backbone_folder(BACKBONE))
    print(f"megabytes at rank {options.rank}")
    hosts = {}
    for fusion in FUSIONS:
        hosts[fusion] = measure(fusion, backbone, options.rank)
        print(f"{fusion:<8}{', '.join(f'{preset} {size:.1f}' for preset, size in hosts[fusion].items())}", flush=True)
    largest = max(sizes[preset] for sizes in hosts.values() for preset in ADAPTER_PRESETS)
    print(f"the largest adapter takes {largest} MB; the limit is {LIMIT}")
    write_report(options.output_dir, {"kind": "adapter_size", "rank": options.rank, "hosts": hosts})


if __name__ == "__main__":
    main()
