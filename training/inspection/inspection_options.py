"""The options of `priorvla inspect`, checked before anything heavy is loaded: this module imports no numerics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...hub_cards.checkpoints import is_hub_id, split_revision


@dataclass(frozen=True)
class InspectionOptions:
    """What `inspect` takes.

    Args:
        dataset: folder, file or Hub id.
        output_dir: of report.html and report.json, which are replaced if they are there; None prints the summary only.
        no_images: leave pictures alone: the check for an action prior. From the Hub no video is fetched then.
        chunk_size: steps of the windows that training will cut.
        episodes: only these: numbers and ranges (`0 7 10-19`).
        strict: warnings make the exit status 3.
        mapping: YAML that maps columns of array files, see `ColumnMapping`.
    """

    dataset: str
    output_dir: Path | None = None
    no_images: bool = False
    chunk_size: int = 16
    episodes: Sequence[str] | None = None
    strict: bool = False
    mapping: Path | None = None

    def check(self) -> None:
        """Raises ValueError naming the option, FileNotFoundError when there can be no such dataset or mapping."""
        if self.chunk_size < 1:
            raise ValueError(f"--chunk-size {self.chunk_size} must be at least 1")
        if not Path(self.dataset).exists() and not is_hub_id(split_revision(self.dataset)[0]):
            raise FileNotFoundError(
                f"{self.dataset} does not exist: give a dataset's folder or file, or its Hub id (owner/name)"
            )
        if self.output_dir is not None and self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"--output-dir {self.output_dir} is a file: name a folder")
        if self.mapping is not None and not self.mapping.is_file():
            raise FileNotFoundError(f"--mapping {self.mapping} does not exist: name a YAML file")
        self.episode_numbers()

    def episode_numbers(self) -> list[int] | None:
        """`episodes` as numbers, each once. Raises ValueError on anything but `7` and `10-19`."""
        if self.episodes is None:
            return None
        numbers: list[int] = []
        for entry in self.episodes:
            first, separator, last = entry.partition("-")
            if not first.isdecimal() or (separator and not last.isdecimal()):
                raise ValueError(f"--episodes {entry!r} is neither a number nor a range such as 10-19")
            if separator and int(last) < int(first):
                raise ValueError(f"--episodes {entry} ends before it begins")
            numbers += range(int(first), int(last or first) + 1)
        return list(dict.fromkeys(numbers))


def run_inspection(options: InspectionOptions) -> int:
    """Inspects, prints the summary, writes the report, and returns the exit status of `findings.exit_status`."""
    from .inspection import inspect_dataset
    from .inspection_report import describe_inspection, write_inspection

    inspection = inspect_dataset(
        options.dataset,
        frames=not options.no_images,
        chunk_size=options.chunk_size,
        episodes=options.episode_numbers(),
        mapping=options.mapping,
    )
    print(describe_inspection(inspection))
    if options.output_dir is not None:
        print(f"Report: {write_inspection(inspection, options.output_dir)}")
    return inspection.exit_status(options.strict)


__all__ = ["InspectionOptions", "run_inspection"]
