"""Which code a job would run here: an installed model or a fetched package, and whether people said yes to it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from dure_client.home import AgentHome
from dure_client.jobs.approvals import Verdict, decision_on
from dure_client.packages.shelf import PackageError, PackageShelf
from dure_client.policy_checks import PackageStanding
from dure_models import registry
from dure_models.digest import model_digest
from dure_models.errors import ModelsError
from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.job import JobFile

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobModel:
    """A job's model as it is here. installed: its name and digest, empty if it is not here; package: digest of the
    package that offers it, with its standing; both None for a model that is installed with Dure."""

    installed: Mapping[str, str]
    package: str | None = None
    standing: PackageStanding | None = None


def job_model(home: AgentHome, job: JobFile, package: str | None = None, *, for_approval: bool = False) -> JobModel:
    """Find a job's model: `package` if a person named one, else what the decision on the job names, else any that fits.

    A model that is installed goes before every package of its name. Raises RefusedError(MODEL_DIGEST) if a package was
    approved for the job, or is installed, and is not the same any more; its installed files do not count
    `for_approval`, which unpacks it anew.
    """
    name, digest = job.model.name, job.model.digest
    if name in registry.names():
        return JobModel(installed_digest(name))
    shelf, decision = PackageShelf(home.models), decision_on(home, job)
    approved = decision.package if decision is not None and decision.verdict is Verdict.APPROVED else None
    here = [each for each in shelf.all() if each.manifest.name == name and each.manifest.model_digest == digest]
    fitting = sorted(here, key=lambda each: (each.approved_at is None, each.digest))
    chosen = package or approved or (fitting[0].digest if fitting else None)
    if chosen is None:
        return JobModel({})
    try:
        manifest = shelf.package(chosen).manifest
        is_installed = any(each.digest == chosen and each.approved_at for each in here)
        if for_approval or not is_installed:
            return JobModel({manifest.name: manifest.model_digest}, chosen, PackageStanding.FETCHED)
        shelf.verified(chosen)
    except PackageError as error:
        raise RefusedError(RefusalCode.MODEL_DIGEST, str(error)) from error
    standing = PackageStanding.APPROVED if chosen == approved else PackageStanding.INSTALLED
    return JobModel({manifest.name: manifest.model_digest}, chosen, standing)


def installed_digest(name: str) -> dict[str, str]:
    """The digest of a model that is installed with Dure or beside it, by name; empty if there is none."""
    if name not in registry.names():
        return {}
    try:
        return {name: model_digest(name)}
    except ModelsError as error:
        logger.warning("the model %r cannot be used: %s", name, error)
        return {}
