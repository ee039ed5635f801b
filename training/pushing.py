"""A run that publishes what it trained: to one repository, in whole commits, at its end or at every save."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..hub_cards.card import load_card
from ..hub_cards.published_card import published_card
from ..hub_cards.publishing import REPORT_FILE, copy_model, publish_files, published_base
from ..hub_cards.uploading import repository_id, require_place, upload_checkpoint
from ..modeling_priorvla.adapters import adapters_in
from .stage_arguments import NO_LICENSE, StageTrainingArguments

PUSHED_FILE = "pushed.json"  # in the run's folder: the repository that it has pushed to, and may replace
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
        self._require_pushable()
        token = args.hub_token if token is None else token
        self.hub_model_id = repo = repository_id(args.hub_model_id or self._folder.absolute().name, token)
        if self._is_ours(repo):
            return
        try:
            require_place(repo, private=self._private(private), token=token, revision=args.hub_revision)
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
        folder). What this run has pushed there is replaced, also when the run was resumed, and stays readable under its
        commit. A checkpoint that the run has not pushed is replaced only with `overwrite`: somebody may be using it.
        Anything else in the repository is never touched.

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
        if license == NO_LICENSE:
            raise ValueError("license is missing: name the weights' licence, for example license='apache-2.0'")
        self._require_pushable(values.get("base_model"))
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
            self._stage(saved, staging / "checkpoint", repo, license, values)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        later = _later(saved, repo, license, values.get("base_model"), upload)
        self._last_upload = self._uploads.submit(self._upload, staging, repo, later, **upload)
        return self._last_upload

    def _stage(self, saved: Path, folder: Path, repo: str, license: str, values: Mapping[str, Any]) -> None:  # noqa: A002
        config, bodies = self.model.config, self.processor.embodiments
        metrics, report = self.card_facts.get("metrics"), saved / REPORT_FILE
        added = {"metrics": metrics, "name": values.get("name"), "base_model": values.get("base_model")}
        adapted = adapters_in(self.model) is not None
        publish_files(
            lambda place: copy_model(saved, place, config, values.get("base_model")),
            self.processor,
            folder,
            card=lambda _: published_card(config, load_card(saved), license, bodies, 0, repo, added, adapted),
            embodiments=bodies,
            metrics=metrics,
            report=report if metrics and report.is_file() else None,  # else it is of another run in the folder
            pictures=saved,
        )

    def _upload(self, staging: Path, repo: str, later: str, overwrite: bool = False, **upload: Any) -> CommitInfo:
        try:
            if not self._is_ours(repo):
                place = {name: upload[name] for name in ("private", "token", "revision")}
                require_place(repo, overwrite=overwrite, **place)
                # before the upload: when only the answer is lost, all of it is there
                (self._folder / PUSHED_FILE).write_text(json.dumps({"repository": repo}) + "\n", encoding="utf-8")
            return upload_checkpoint(staging / "checkpoint", repo, overwrite=True, **upload)
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

    def _is_ours(self, repo: str) -> bool:
        file = self._folder / PUSHED_FILE
        return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["repository"] == repo

    def _require_pushable(self, base: str | None = None) -> None:
        if self.processor is None:
            raise ValueError("a checkpoint is published with its processor: pass processor= to the Trainer")
        adapters = adapters_in(self.model)
        if adapters is not None:
            published_base(adapters.peft_config[adapters.active_adapter].base_model_name_or_path, base)


def _warn(error: BaseException | None) -> None:
    if error is not None:
        logger.warning(f"the training goes on without this push: {error}")


def _later(saved: Path, repo: str, license: str, base: str | None, upload: Mapping[str, Any]) -> str:  # noqa: A002
    """The command that publishes what is in `saved` when the Hub can be reached again."""
    words = ["priorvla", "publish", str(saved), repo, "--license", license, "--overwrite"]
    words += ["--base-model", base] if base else []
    words += [] if upload["private"] else ["--public"]
    words += ["--revision", upload["revision"]] if upload["revision"] else []
    return shlex.join(words)


__all__ = ["PushesToHub"]
