"""The model registry on MLflow: packages by content hash, and aliases that move only with a verdict of their own."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from production_ml.core.clock import iso_utc
from production_ml.core.errors import DamagedFileError, PromotionRefusedError, RegistryError, UnknownModelError
from production_ml.mlops.evaluation_gate import CHAMPION, Verdict
from production_ml.mlops.mlflow_connection import MlflowConnection, local_path
from production_ml.mlops.model_package import DESCRIPTION_FILE, ModelPackage, open_package
from production_ml.mlops.registry_records import (
    ModelInfo,
    RegisteredVersion,
    VersionInfo,
    history_after_promotion,
    history_after_rollback,
    parse_reference,
    read_verdict,
    why_not_promotable,
)
from production_ml.storage.names import check_name

UPLOADS_EXPERIMENT: Final = "production_ml-registry"
"""Holds the packages that were registered without a training run."""
_CONTENT_HASH_TAG: Final = "production_ml.content_hash"
_VERDICT_TAG: Final = "production_ml.verdict."
_PASSED_TAG: Final = "production_ml.verdict_passed."
"""For people who search in MLflow; nothing here reads it."""
_HISTORY_TAG: Final = "production_ml.alias_history."


class ModelRegistry:
    """Registers, judges, promotes, rolls back and fetches models.

    Args:
        tracking_uri: See `MlflowConnection`.
        cache_directory: Where packages from a remote server are kept, by content hash. Default:
            `$XDG_CACHE_HOME/production_ml/models`. A local registry's packages are used where they lie.

    Raises:
        MissingDependencyError: MLflow is not installed.
        RegistryError: The registry cannot be opened.
    """

    def __init__(self, tracking_uri: str | None = None, *, cache_directory: Path | None = None) -> None:
        self._mlflow = MlflowConnection(tracking_uri)
        self._cache = cache_directory or _default_cache()

    @property
    def tracking_uri(self) -> str:
        """Where the registry is kept."""
        return self._mlflow.tracking_uri

    def register(
        self, package: ModelPackage, *, run_id: str | None = None, verdict: Verdict | None = None
    ) -> RegisteredVersion:
        """Upload `package` as artifacts of a run and make it the next version of its name.

        Args:
            package: What to register; its files are verified first.
            run_id: The MLflow run that trained it; without one a run is made to hold the upload.
            verdict: Recorded with it; see `record_verdict`.

        Raises:
            ConfigError: The package's name has letters that a reference cannot hold.
            DamagedFileError: A file of the package does not match its hash.
            RegistryError: The verdict is about another package, or MLflow did not take the upload.
        """
        name = check_name("model name", package.name)
        open_package(package.directory)
        _check_subject(verdict, package.content_hash, f"the package {name}")
        run = run_id or self._upload_run(name)
        folder = f"models/{name}/{package.content_hash}"
        with self._mlflow.calls(f"upload the package {name}"):
            for file in (*package.files, DESCRIPTION_FILE):
                subfolder = (PurePosixPath(folder) / file).parent
                self._mlflow.client.log_artifact(run, str(package.file(file)), str(subfolder))
        with self._mlflow.calls(f"register the model {name}"):
            if self._find(name) is None:
                self._mlflow.client.create_registered_model(name)
            tags = {_CONTENT_HASH_TAG: package.content_hash}
            made = self._mlflow.client.create_model_version(name, f"runs:/{run}/{folder}", run, tags=tags)
        if verdict is not None:
            self.record_verdict(name, int(made.version), verdict)
        return RegisteredVersion(
            name=name,
            version=int(made.version),
            alias=None,
            directory=package.directory,
            content_hash=package.content_hash,
        )

    def record_verdict(self, name: str, version: int, verdict: Verdict) -> None:
        """Put `verdict` on record beside those for other aliases.

        The newest one for an alias counts; the earlier ones stay as artifacts of the run.

        Raises:
            UnknownModelError: There is no such model or version.
            RegistryError: The verdict is about another package, or MLflow did not take it.
        """
        info = self._version(self.show(name), version)
        _check_subject(verdict, info.content_hash, f"{name} version {version}")
        text = verdict.to_json()
        with self._mlflow.calls(f"record the verdict on {name} version {version}"):
            file = f"{verdict.alias}/{verdict.decided_at.replace(':', '')}.json"
            self._mlflow.client.log_text(info.run_id, text, f"verdicts/{name}/version-{version}/{file}")
            passed = "true" if verdict.passed else "false"
            self._mlflow.client.set_model_version_tag(name, str(version), _PASSED_TAG + verdict.alias, passed)
            # Last, since this is the one that promote() believes.
            self._mlflow.client.set_model_version_tag(name, str(version), _VERDICT_TAG + verdict.alias, text)

    def promote(self, name: str, version: int, alias: str = CHAMPION) -> VersionInfo:
        """Move `alias` to `version`, if the registry holds a passing verdict for this alias about exactly its content.

        Every alias asks for a verdict of its own, `challenger` too: a challenger answers real requests. Where it may be
        weaker than a champion, judge it by a gate of milder rules, `EvaluationGate(rules, alias="challenger")`; that
        verdict does not make it champion.

        Raises:
            PromotionRefusedError: There is no verdict for this alias, it is about another package, or it did not pass.
            UnknownModelError: There is no such model or version.
            RegistryError: MLflow did not answer, or did not take the change.
        """
        model = self.show(name)
        check_name("alias", alias)
        info = self._version(model, version)
        holder = model.aliases.get(alias)
        self._require_verdict(model, info, alias)
        if holder != version:
            history = history_after_promotion(model.history.get(alias, ()), holder, version)
            # The history first: if the process dies in between, an entry too many does no harm (see `_before`).
            self._write_history(name, alias, history)
            self._move(name, alias, version)
        return self._version(self.show(name), version)

    def rollback(self, name: str, alias: str = CHAMPION) -> VersionInfo:
        """Give `alias` back to the version that held it before; a second rollback goes one further back.

        Raises:
            PromotionRefusedError: The earlier holder's verdict for this alias has meanwhile been replaced by a refusal.
            UnknownModelError: There is no such model, or nobody holds the alias.
            RegistryError: Nobody held the alias before, or MLflow did not take the change.
        """
        model = self.show(name)
        holder = self._holder(model, alias)
        history = history_after_rollback(model.history.get(alias, ()), holder)
        if not history:
            raise RegistryError(
                f"{name}@{alias} cannot be rolled back: nobody held the alias before version {holder}.",
                meaning=f"{alias} stays at version {holder}.",
                cure=f"Promote another version: production-ml registry promote {name} VERSION --alias {alias}",
            )
        info = self._version(model, history[-1])
        self._require_verdict(model, info, alias)
        self._move(name, alias, info.version)
        self._write_history(name, alias, history)
        return self._version(self.show(name), info.version)

    def resolve(self, reference: str) -> RegisteredVersion:
        """Fetch the package behind `digits@champion`, `digits:3` or `digits` (its champion), and verify it.

        Raises:
            ConfigError: The reference has another form.
            UnknownModelError: There is no such model, version or alias.
            RegistryError: MLflow did not answer, or the version holds no package.
            DamagedFileError: The package is not the one that was registered.
        """
        wanted = parse_reference(reference)
        model = self.show(wanted.name)
        number = wanted.version if wanted.version is not None else self._holder(model, wanted.alias or CHAMPION)
        info = self._version(model, number)
        return RegisteredVersion(
            name=info.name,
            version=info.version,
            alias=wanted.alias,
            directory=self._fetch(info),
            content_hash=info.content_hash,
        )

    def list(self) -> tuple[ModelInfo, ...]:
        """All models by name, with their versions."""
        with self._mlflow.calls("list the models"):
            found = _all_pages(self._mlflow.client.search_registered_models)
            return tuple(self._read(model) for model in sorted(found, key=lambda model: str(model.name)))

    def show(self, name: str) -> ModelInfo:
        """One model with its versions, aliases and their history.

        Raises:
            UnknownModelError: There is no such model; the error lists the known ones.
            RegistryError: MLflow did not answer.
        """
        check_name("model name", name)
        with self._mlflow.calls(f"read the model {name}"):
            found = self._find(name)
            if found is not None:
                return self._read(found)
        known = ", ".join(model.name for model in self.list()) or "none"
        raise UnknownModelError(
            f"No model is called {name!r} in {self._mlflow.public_uri}.",
            meaning=f"Known models: {known}.",
            cure="Register one, or point MLFLOW_TRACKING_URI at the registry that has it.",
        )

    def _find(self, name: str) -> Any | None:
        # The name is checked: it cannot end the quotes.
        found = self._mlflow.client.search_registered_models(filter_string=f"name = '{name}'")
        return next(iter(found), None)

    def _read(self, model: Any) -> ModelInfo:
        aliases = {str(alias): int(version) for alias, version in model.aliases.items()}
        found = _all_pages(self._mlflow.client.search_model_versions, filter_string=f"name = '{model.name}'")
        versions = sorted((_read_version(version, aliases) for version in found), key=lambda version: version.version)
        history = {
            tag.removeprefix(_HISTORY_TAG): tuple(json.loads(holders))
            for tag, holders in model.tags.items()
            if tag.startswith(_HISTORY_TAG)
        }
        return ModelInfo(name=model.name, versions=tuple(versions), aliases=aliases, history=history)

    def _version(self, model: ModelInfo, number: int) -> VersionInfo:
        found = model.version(number)
        if found is not None:
            return found
        known = ", ".join(str(version.version) for version in model.versions) or "none"
        raise UnknownModelError(f"{model.name} has no version {number}.", meaning=f"Known versions: {known}.")

    def _holder(self, model: ModelInfo, alias: str) -> int:
        if alias in model.aliases:
            return model.aliases[alias]
        known = ", ".join(f"{name} (version {version})" for name, version in sorted(model.aliases.items())) or "none"
        raise UnknownModelError(
            f"{model.name} has no alias {alias!r}.",
            meaning=f"Known aliases: {known}.",
            cure=f"Promote a version that passed the gate: production-ml registry promote {model.name} VERSION "
            f"--alias {alias}",
        )

    def _require_verdict(self, model: ModelInfo, version: VersionInfo, alias: str) -> None:
        reason = why_not_promotable(version, alias)
        if reason is None:
            return
        holder = model.aliases.get(alias)
        raise PromotionRefusedError(
            f"{model.name} version {version.version} did not become {alias}: {reason}",
            meaning=f"{alias} stays at version {holder}." if holder is not None else f"There is still no {alias}.",
            cure=f'Judge it with EvaluationGate(rules, alias="{alias}") and record the verdict, or promote another '
            "version.",
        )

    def _move(self, name: str, alias: str, version: int) -> None:
        with self._mlflow.calls(f"move the alias {name}@{alias} to version {version}"):
            self._mlflow.client.set_registered_model_alias(name, alias, str(version))

    def _write_history(self, name: str, alias: str, history: tuple[int, ...]) -> None:
        with self._mlflow.calls(f"record the history of {name}@{alias}"):
            self._mlflow.client.set_registered_model_tag(name, _HISTORY_TAG + alias, json.dumps(history))

    def _upload_run(self, name: str) -> str:
        experiment_id = self._mlflow.experiment(UPLOADS_EXPERIMENT)
        with self._mlflow.calls(f"make a run for the package {name}"):
            run_id = str(self._mlflow.client.create_run(experiment_id, run_name=f"register {name}").info.run_id)
            self._mlflow.client.set_terminated(run_id)
        return run_id

    def _fetch(self, info: VersionInfo) -> Path:
        if not info.content_hash:
            raise RegistryError(
                f"{info.name} version {info.version} holds no production_ml package.",
                cure="Export the model with production_ml.mlops.model_export and register the package.",
            )
        with self._mlflow.calls(f"find the package of {info.name} version {info.version}"):
            artifacts = str(self._mlflow.client.get_run(info.run_id).info.artifact_uri)
        root = local_path(artifacts)
        if root is not None:
            return _verified(root / info.artifact_path, info)
        cached = self._cache / info.content_hash
        if not cached.is_dir():
            self._download(info, cached)
        return _verified(cached, info)

    def _download(self, info: VersionInfo, target: Path) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=self._cache) as temporary:
            with self._mlflow.calls(f"download {info.name} version {info.version}"):
                fetched = Path(self._mlflow.client.download_artifacts(info.run_id, info.artifact_path, temporary))
            _verified(fetched, info)
            try:
                fetched.rename(target)
            except OSError:
                # Another process was quicker: a directory cannot be renamed onto a full one.
                if not target.is_dir():
                    raise


def _check_subject(verdict: Verdict | None, content_hash: str, what: str) -> None:
    if verdict is not None and verdict.subject != content_hash:
        raise RegistryError(
            f"The verdict is about the package {verdict.subject[:8]}, but {what} is {content_hash[:8]}.",
            meaning="Nothing was recorded.",
            cure="Pass the gate the content_hash of the package that was evaluated.",
        )


def _verified(directory: Path, info: VersionInfo) -> Path:
    found = open_package(directory).content_hash
    if found != info.content_hash:
        raise DamagedFileError(
            directory / DESCRIPTION_FILE,
            f"describes the package {found[:8]}, but {info.name} version {info.version} is {info.content_hash[:8]}",
            meaning="The model is not loaded.",
            cure="Register it again from its checkpoint.",
        )
    return directory


def _read_verdicts(tags: Mapping[str, str], of: str) -> dict[str, Verdict]:
    """Alias to verdict, by the tag that it lies under."""
    aliases = sorted(tag.removeprefix(_VERDICT_TAG) for tag in tags if tag.startswith(_VERDICT_TAG))
    found = {alias: read_verdict(tags[_VERDICT_TAG + alias], of=f"{of}, {alias}") for alias in aliases}
    return {alias: verdict for alias, verdict in found.items() if verdict is not None}


def _read_version(version: Any, aliases: dict[str, int]) -> VersionInfo:
    number = int(version.version)
    return VersionInfo(
        name=version.name,
        version=number,
        aliases=tuple(sorted(alias for alias, holder in aliases.items() if holder == number)),
        content_hash=version.tags.get(_CONTENT_HASH_TAG, ""),
        verdicts=_read_verdicts(version.tags, f"{version.name} version {number}"),
        run_id=version.run_id or "",
        # `runs:/<run id>/<path>`
        artifact_path=unquote(urlsplit(version.source).path).lstrip("/").partition("/")[2],
        registered_at=iso_utc(version.creation_timestamp / 1000),
    )


def _all_pages(search: Callable[..., Any], **arguments: Any) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **arguments)
        found.extend(page)
        token = page.token
        if not token:
            return found


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "production_ml" / "models"
