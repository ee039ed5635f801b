"""A run that publishes what it trained: to one repository, in whole commits, at its end or at every save."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..hub_cards.adapter_facts import adapter_config
from ..hub_cards.card import load_card
from ..hub_cards.licenses import require_license
from ..hub_cards.published_base import published_base, with_published_base
from ..hub_cards.published_card import published_card
from ..hub_cards.publishing import REPORT_FILE, copy_model, publish_files
from ..hub_cards.uploading import Upload, digests, repository_id, require_place, upload_checkpoint
from ..modeling_priorvla.adapters import adapters_in
from .stage_arguments import StageTrainingArguments

PUSHED_FILE = "pushed.json"  # in the run's folder: by repository and branch what it has pushed last, and may replace
CARD_VALUES = ("license", "metrics", "name", "base_model")

logger = logging.get_logger(__name__)


class PushesToHub(Trainer):
    """A Trainer that publishes as `publish` does, where transformers' would upload a folder.

    That is: private unless `hub_private_repo=False`, one commit with weights (averaged), processor, embodiments and
    card, of an adapted model the adapter alone, no pickle, nothing of the optimizer. Nothing is written to the Hub
    before there is a checkpoint to push; what cannot be pushed at all is refused when the Trainer is made.

    Raises:
        ValueError: with `push_to_hub=True`, when there is no processor, an adapter's base is not on the Hub, or what is
            asked for is no name of a repository.
        FileExistsError, PermissionError, ConnectionError: then also, as `upload_checkpoint`.
    """

    args: StageTrainingArguments
    model: Any
    processor: Any
    hub_model_id: str | None  # type: ignore[assignment]  # there inferred from its first value
    card_facts: dict[str, Any]
    _last_upload: Future[CommitInfo] | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Finds out where a push would go, and whether it could; transformers' makes a public repository here."""
        if not self.is_world_process_zero():
            return
        args = self.args
        self._require_processor()
        token = args.hub_token if token is None else token
        adapter = adapter_config(self.model)
        if adapter is not None:
            published_base(adapter.get("base_model_name_or_path"), None)  # before the Hub is asked anything
        self.hub_model_id = repo = repository_id(args.hub_model_id or self._folder.absolute().name, token)
        if adapter is not None:
            with_published_base(adapter, None, repo, token)
        earlier, revision = self._earlier(repo, args.hub_revision), args.hub_revision
        try:
            require_place(repo, private=self._private(private), earlier=earlier, token=token, revision=revision)
        except FileExistsError as error:
            raise FileExistsError(
                f"{error}. With push_to_hub=True a run replaces what it has pushed itself and nothing else: choose "
                "another hub_model_id, or train without and publish the result when you have seen it"
            ) from None
        except ValueError as error:
            raise ValueError(f"{error} (of training arguments: hub_private_repo, hub_revision)") from None

    def push_to_hub(  # type: ignore[override]  # transformers' own returns these three, too
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        overwrite: bool = False,
        **card_values: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Saves the model into the run's folder and publishes it from there, with the run's metrics and report.

        It goes to `args.hub_model_id` (`owner/name`, or a bare name of your own account; default: the name of the run's
        folder). What this run has pushed to that branch is replaced, also when the run was resumed, and stays readable
        under its commit. A checkpoint that the run has not pushed, or that somebody has changed since, is replaced only
        with `overwrite`: somebody may be using it. Anything else in the repository is never touched.

        Every process calls it, the first one uploads.

        Args:
            blocking: wait for the upload. Otherwise the files are put aside, and training may go on.
            token: default `args.hub_token`, else that of HF_TOKEN or of `hf auth login`.
            revision: branch, which must exist; default `args.hub_revision`, else main.
            private: default `args.hub_private_repo`, else True.
            card_values: `license` instead of `args.license`, `metrics`, the card's `name`, and `base_model`, the Hub id
                of what the model started from.

        Returns:
            The commit, or its future where `blocking` is False; None where this is not the first process.

        Raises:
            ValueError: licence or processor is missing, an adapter's base is not on the Hub, a value is unknown; and as
                `upload_checkpoint`.
            FileExistsError, PermissionError, ConnectionError, OSError: as `upload_checkpoint`; the checkpoint is in the
                run's folder then, and the message says how to publish it later.
        """
        if unknown := sorted(card_values.keys() - set(CARD_VALUES)):
            raise ValueError(f"push_to_hub has no argument {unknown[0]!r}; the card is told {', '.join(CARD_VALUES)}")
        values = {name: value for name, value in card_values.items() if value is not None}
        license = values.pop("license", self.args.license)  # noqa: A001
        require_license(license, decided=True)
        self._require_processor()
        if (adapter := adapter_config(self.model)) is not None:
            published_base(adapter.get("base_model_name_or_path"), values.get("base_model"))
        if "metrics" in values:
            self.card_facts["metrics"] = dict(values["metrics"])
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.hub_model_id = repository_id(self.args.hub_model_id or self._folder.absolute().name, token)
        upload = self._push(
            self._folder,
            license,
            values,
            commit_message=commit_message,
            token=token,
            revision=self.args.hub_revision if revision is None else revision,
            private=self._private(private),
            overwrite=overwrite,
        )
        return upload.result() if blocking else upload

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's, which would also push when `push_to_hub=True`; here `train` and `push_to_hub` do that."""
        super().save_model(output_dir, _internal_call=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """After every save of the training, which goes on; a push that fails is a warning."""
        args, last = self.args, self._last_upload
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if last is not None and not last.done() and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        try:
            upload = self._push(
                Path(checkpoint_folder),
                args.license,
                {},
                commit_message=f"Training in progress, step {self.state.global_step}",
                token=args.hub_token,
                revision=args.hub_revision,
                private=self._private(None),
            )
        except (OSError, ValueError) as error:
            _warn(error)
        else:
            upload.add_done_callback(lambda done: _warn(done.exception()))

    def _finish_current_push(self) -> None:
        """Waits until what is being uploaded is there, or has failed."""
        if self._last_upload is not None:
            self._last_upload.exception()

    # --- one push ---

    def _push(
        self,
        saved: Path,
        license: str,  # noqa: A002
        values: Mapping[str, Any],
        **upload: Any,
    ) -> Future[CommitInfo]:
        """Puts aside what is to be published of the checkpoint in `saved`, and uploads that in a thread."""
        repo = self.hub_model_id
        assert repo is not None
        staging = Path(tempfile.mkdtemp(prefix="priorvla-push-"))
        try:
            self._stage(saved, staging / "checkpoint", repo, license, values, upload["token"])
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        later = _later(self._folder, repo, license, values.get("base_model"), upload)
        self._last_upload = self._uploads.submit(self._upload, staging, repo, later, **upload)
        return self._last_upload

    def _stage(
        self,
        saved: Path,
        folder: Path,
        repo: str,
        license: str,  # noqa: A002
        values: Mapping[str, Any],
        token: str | None,
    ) -> None:
        config, bodies = self.model.config, self.processor.embodiments
        metrics, report = self.card_facts.get("metrics"), saved / REPORT_FILE
        base, adapted = values.get("base_model"), adapters_in(self.model) is not None
        added = {"metrics": metrics, "name": values.get("name"), "base_model": base}
        publish_files(
            lambda place: copy_model(saved, place, config, adapted=adapted, base=base, repo=repo, token=token),
            self.processor,
            folder,
            card=lambda _: published_card(config, load_card(saved), license, bodies, 0, repo, added, adapted),
            embodiments=bodies,
            metrics=metrics,
            report=report if metrics and report.is_file() else None,  # else it is of another run in the folder
            pictures=saved,
        )

    def _upload(self, staging: Path, repo: str, later: str, **upload: Any) -> CommitInfo:
        folder, revision = staging / "checkpoint", upload["revision"]
        earlier = self._earlier(repo, revision)
        try:
            # before the upload: when only its answer is lost, the files tell that what is there is ours
            self._remember(repo, revision, Upload(earlier.commit if earlier else None, digests(folder)))
            commit = upload_checkpoint(folder, repo, earlier=earlier, **upload)
            self._remember(repo, revision, Upload(commit.oid))
            return commit
        except OSError as error:
            raise type(error)(f"{error}. The checkpoint is on this disk; to publish it later: {later}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    @cached_property
    def _uploads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="push")  # one upload after the other

    # --- what may be pushed, and where to ---

    @property
    def _folder(self) -> Path:
        assert self.args.output_dir is not None  # TrainingArguments fills it in
        return Path(self.args.output_dir)

    def _private(self, asked: bool | None) -> bool:
        return (self.args.hub_private_repo is not False) if asked is None else asked

    def _earlier(self, repo: str, revision: str | None) -> Upload | None:
        told = self._pushed().get(f"{repo}@{revision or 'main'}")
        return Upload(**told) if told else None

    def _remember(self, repo: str, revision: str | None, upload: Upload) -> None:
        told = {**self._pushed(), f"{repo}@{revision or 'main'}": asdict(upload)}
        (self._folder / PUSHED_FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    def _pushed(self) -> dict[str, Any]:
        file = self._folder / PUSHED_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def _require_processor(self) -> None:
        if self.processor is None:
            raise ValueError("a checkpoint is published with its processor: pass processor= to the Trainer")


def _warn(error: BaseException | None) -> None:
    if error is not None:
        logger.warning(f"the training goes on without this push: {error}")


def _later(run: Path, repo: str, license: str, base: str | None, upload: Mapping[str, Any]) -> str:  # noqa: A002
    """The command that publishes what is in the folder `run` when the Hub can be reached again.

    Of a save during the training, too: its own folder may be deleted by then.
    """
    words = ["priorvla", "publish", str(run), repo, "--license", license]
    words += ["--overwrite"] if upload.get("overwrite") else []
    words += ["--base-model", base] if base else []
    words += [] if upload["private"] else ["--public"]
    words += ["--revision", upload["revision"]] if upload["revision"] else []
    return shlex.join(words)


__all__ = ["PushesToHub"]
