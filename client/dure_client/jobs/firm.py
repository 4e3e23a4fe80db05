"""What a firm does with the coordinator's requests: decode, decide, let the job answer, refuse with a code.

    link ─► agent.Agent ─► flower.FlowerApp ─► Flower ClientApp ─► Firm.answer ─► jobs.side.JobSide ─► trainer process

`Firm` knows neither link nor Flower: the same object answers in production, on a stock SuperNode and in tests. All it
needs lies in the agent's home, so it can be rebuilt at any moment. `run_agent` is what `dure-agent run` calls.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from dure_client.absence import absence, at_limit, local_now
from dure_client.home import AgentHome
from dure_client.jobs.approvals import (
    APPROVAL_FILE,
    ApprovalError,
    By,
    Verdict,
    approved_by_people,
    decide,
    decision_on,
    known_job,
    known_jobs,
)
from dure_client.jobs.folder import JobFolder
from dure_client.jobs.open_job import OpenJob, compare, granted, stamp
from dure_client.jobs.refusals import forget_refusal, note_refusal
from dure_client.jobs.released import ReleasedFile
from dure_client.jobs.side import FirmLimits, Given, JobSide, Reaction
from dure_client.leaving import has_left, has_left_consortium, leave_file
from dure_client.packages.admission import job_model
from dure_client.policy import Policy
from dure_client.policy_checks import check_decision, check_job, check_not_refused, check_sandbox
from dure_client.shifts import TrainedFile, limit_until, threads_now
from dure_client.trainer.client import TrainerClient
from dure_client.trainer.messages import Method, TrainerError, TrainingSpec
from dure_client.trainer.process import TRAINER_MODULE, TrainerPlaces
from dure_client.trainer.sandbox import Limits, Sandbox, SandboxError, find_sandbox
from dure_client.vouches import read_vouches
from dure_protocols.errors import DureError, MessageError, RefusalCode, RefusedError
from dure_protocols.global_state import layout_of
from dure_protocols.job import JobFile, JobFileError
from dure_protocols.logs import from_now_on
from dure_protocols.messages import (
    Approval,
    Finished,
    Hello,
    Invitation,
    JobRequest,
    Present,
    Proposal,
    Refusal,
    Request,
    decode,
)
from dure_protocols.secagg.codec import OutOfRangeError, warm_up
from dure_protocols.secagg.terms import Randomness

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]
IDLE_SECONDS = 600.0
"""How long a job's trainer may wait for the next request: longer than a round's waits, shorter than a night."""


def utc_now() -> datetime:
    """The operating system's clock, in UTC."""
    return datetime.now(UTC)


class Firm:
    """One firm's side of all its jobs. One thread calls `answer`; `close` ends the trainers."""

    def __init__(
        self,
        home: AgentHome,
        *,
        randomness: Randomness = os.urandom,
        num_threads: int = 1,
        trainer_module: str = TRAINER_MODULE,
        trainer_json_log: bool = False,
        sandbox: Sandbox | None = None,
        trained: Callable[[str, float], None] = lambda _, __: None,
        clock: Clock = local_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`randomness(n)` gives n bytes for keys and masks; `num_threads` is what each trainer may use.

        `trainer_module`: the process that trains; another than the product's is for benchmarks. `sandbox`: what it runs
        in, this host's strongest if None. `trained` is told each call of a trainer and its seconds. `clock`: the
        firm's local time with its zone, by which maintenance windows open; `monotonic`: seconds, for idle trainers.
        """
        self._clock, self._monotonic = clock, monotonic
        self._trainer_json_log, self._told_trained = trainer_json_log, trained
        self._trainer_module = trainer_module
        self._sandbox = sandbox or find_sandbox()
        self._home = home
        self._name = home.config().firm
        self._identity = home.identity()
        self._randomness, self._num_threads = randomness, num_threads
        self._released = ReleasedFile(home.state / "released.bin")
        self._trainings = TrainedFile(home.state / "trained.json")
        self._jobs: dict[bytes, OpenJob] = {}
        self._aside = ThreadPoolExecutor(1, "results")

    def answer(self, body: bytes, given: Given) -> Reaction:
        """Answer one request's bytes. Never raises on what a peer may send: the answer is then a Refusal with a code.

        The reason is logged here, at the firm, kept for `dure-agent jobs`, and told nowhere else.
        """
        request = None
        try:
            request = _request(body)
            return self._react(request, given)
        except DureError as error:
            return self._refuse(_code_of(error), error, request)

    def close(self) -> None:
        """End every trainer; a result that is being made is given up, and made anew by `resume`."""
        for job in list(self._jobs.values()):
            job.trainer.shut()
        self._aside.shutdown(cancel_futures=True)

    def close_idle(self, idle_seconds: float = IDLE_SECONDS) -> int:
        """End the trainers of jobs that nobody has asked anything of for so long: paused, failed and stopped ones, of
        which a firm is not told. A later request starts it again. Called by a thread of its own; how many were ended.
        """
        now, ended = self._monotonic(), 0
        for opened in list(self._jobs.values()):
            trainer = opened.trainer
            is_idle = trainer.pid is not None and now - opened.used_at >= idle_seconds
            if trainer.has_ended:  # by itself; what it wrote is removed
                opened.side.while_idle(trainer.close)
            elif is_idle and opened.side.while_idle(trainer.close):
                logger.info("job %s is quiet: its trainer is ended for now", opened.job.id)
                ended += 1
        return ended

    def give_up(self, job: str, then: Callable[[], None]) -> None:
        """End all work on a job that this firm has left, then do something while nobody is at it. Any thread may call.

        What is being trained for it fails and is answered by a refusal.
        """
        opened = next((each for each in list(self._jobs.values()) if each.job.id == job), None)
        if opened is None:
            then()
            return
        opened.trainer.shut()
        opened.side.conclude(then)
        self._jobs.pop(opened.job.digest(), None)

    def resume(self) -> None:
        """Go on with results that an earlier process did not finish. Called once, when an agent starts."""
        for known in known_jobs(self._home):
            folder = JobFolder(self._home.job_folder(known.job.id))
            if known.is_finished and not folder.result_file.exists():
                try:
                    opened = self._open(known.job.digest())
                except DureError as error:
                    logger.warning("the result of job %s is not made: %s", known.job.id, error)
                else:
                    opened.result = self._aside.submit(self._write_result, opened)

    def wait_for_results(self) -> None:
        """Wait until every finished job's result is written. Called where the process ends after one message."""
        for job in self._jobs.values():
            if job.result is not None:
                job.result.result()

    def _react(self, request: Request, given: Given) -> Reaction:
        if isinstance(request, Hello):
            return Reaction(Present(self._name))
        if isinstance(request, Proposal):
            return Reaction(self._consider(request))
        return self._answer_in_job(request, given)

    def _consider(self, proposal: Proposal) -> Approval:
        """Keep a proposed job for the firm's people to see; approve it if they or the policy have."""
        job = JobFile.from_bytes(proposal.job)
        folder = JobFolder(self._home.job_folder(job.id))
        stored = folder.load_job()
        is_taken = stored is not None and (decision_on(self._home, stored) is not None or folder.load_session())
        if stored != job and is_taken:
            raise RefusedError(
                RefusalCode.UNKNOWN_JOB,
                f"a job {job.id!r} with another digest was decided on here before; the operator must choose a new id",
            )
        if stored != job:
            folder.save_job(job)
        self._check(job)
        if decision_on(self._home, job) is None:  # the policy said yes; that, too, is on record
            decide(self._home, job, Verdict.APPROVED, utc_now(), By.POLICY)
        forget_refusal(self._home, job.id)
        digest = job.digest()
        logger.info("job %s is approved by this firm", job.id)
        return Approval(self._name, digest, self._identity.sign("dure approval", digest, self._name.encode()))

    def _check(self, job: JobFile) -> Policy:
        """Everything that must hold before this firm computes anything for a job. Raises RefusedError."""
        if has_left_consortium(self._home):
            raise RefusedError(RefusalCode.LEFT, "this firm left the consortium")
        policy = Policy.read(self._home.policy_file)
        decision = decision_on(self._home, job)
        check_not_refused(job, decision)  # its people's no goes before every other reason
        model = job_model(self._home, job)
        check_job(
            policy,
            job,
            firm=self._name,
            public_key=self._identity.public_bytes,
            installed=model.installed,
            vouches=read_vouches(self._home),
            package=model.standing,
        )
        check_sandbox(policy, self._sandbox)
        check_decision(policy, job, decision, approved_by_people(self._home, but=job.id))
        return policy

    def _answer_in_job(self, request: JobRequest, given: Given) -> Reaction:
        opened = self._open(request.job_digest)
        # A firm that rejects a running job, or tightens its policy, does so from the next request on.
        policy = self._policy_on(opened)
        opened.side.use_limits(_limits(policy))
        if isinstance(request, Invitation):
            away = absence(self._home, policy.maintenance, self._name, opened.job.id, self._clock())
            full_until = limit_until(policy.shifts, self._trainings.done, self._clock())
            if away is None and full_until is not None:
                away = at_limit(self._name, full_until)
            if away is not None:
                logger.info("job %s: this firm sits out (%s)", opened.job.id, away.reason.value)
                opened.side.while_idle(opened.trainer.close)  # the machine is wanted for something else
                return Reaction(away)
            opened.trainer.use_threads(threads_now(policy.shifts, self._num_threads, self._clock()))
        try:
            reaction = opened.side.answer(request, given)
        finally:
            opened.used_at = self._monotonic()
            if has_left(self._home, opened.job.id):  # meanwhile: nothing of it leaves any more
                raise RefusedError(RefusalCode.LEFT, f"this firm left job {opened.job.id!r} while it was at work on it")
        if isinstance(reaction.message, Finished) and opened.result is None:
            opened.result = self._aside.submit(self._write_result, opened)
        return reaction

    def _policy_on(self, opened: OpenJob) -> Policy:
        """The policy in force, once the job is checked against it; checked anew when the policy or the firm's word on
        the job has changed. What is installed is looked at when the job is opened: that is what its trainer loads."""
        home = self._home
        files = home.policy_file, home.job_folder(opened.job.id) / APPROVAL_FILE, home.vouches, leave_file(home, "")
        stamps = tuple(stamp(file) for file in files)
        if opened.checked is None or opened.checked[0] != stamps:
            opened.checked = stamps, self._check(opened.job)
        policy = opened.checked[1]
        if opened.granted != granted(policy):
            limits = self._trainer_limits(policy)
            # Where the trainer is at work on the firm's own model, the next request tries again.
            if opened.side.while_idle(lambda: opened.trainer.grant(policy.gpu_devices, limits)):
                opened.granted = granted(policy)
        return policy

    def _open(self, digest: bytes) -> OpenJob:
        if digest not in self._jobs:
            job = self._known(digest)
            policy = self._check(job)
            folder = JobFolder(self._home.job_folder(job.id))
            trainer = self._trainer(job, folder, policy)
            side = JobSide(
                job, self._name, self._identity, folder, trainer, self._released, _limits(policy), self._randomness
            )
            self._jobs[digest] = OpenJob(job, side, folder, trainer, granted(policy), self._monotonic())
            threading.Thread(target=warm_up, args=(layout_of(job, 1),), name="warm-up", daemon=True).start()
        return self._jobs[digest]

    def _known(self, digest: bytes) -> JobFile:
        for name in self._home.job_names():
            try:
                known = known_job(self._home, name)
            except ApprovalError as error:  # one damaged job must not stand in the way of the others
                logger.warning("%s", error)
                continue
            if known.job.digest() == digest:
                return known.job
        raise RefusedError(
            RefusalCode.UNKNOWN_JOB, f"no job with digest {digest.hex()[:16]}… was proposed to this firm"
        )

    def _trainer(self, job: JobFile, folder: JobFolder, policy: Policy) -> TrainerClient:
        home = self._home.path.resolve()  # the trainer works in another folder
        package = job_model(self._home, job).package
        places = TrainerPlaces(
            scratch=folder.path.resolve() / "scratch",
            data=home / self._home.data_file.name,
            log=home / self._home.logs.name / "trainer.log",
            json_log=self._trainer_json_log,
            package=None if package is None else home / self._home.models.name / package,
            hidden=(home,),
            devices=policy.gpu_devices,
        )
        return TrainerClient(
            TrainingSpec.of(job),
            places,
            num_threads=self._num_threads,
            module=self._trainer_module,
            sandbox=self._sandbox,
            limits=self._trainer_limits(policy),
            called=self._note_call,
        )

    def _trainer_limits(self, policy: Policy) -> Limits:
        memory_bytes = int(policy.trainer_memory_gib * (1 << 30))
        return Limits.of_host(self._home.path, memory_bytes, policy.trainer_processors)

    def _note_call(self, method: str, seconds: float) -> None:
        """A call of a trainer is over."""
        if method == Method.TRAIN.value:
            self._trainings.add(self._clock(), seconds)
        self._told_trained(method, seconds)

    def _write_result(self, opened: OpenJob) -> None:
        """Train the firm's own model for comparison and keep both reports, at the firm."""
        from_now_on(job=opened.job.id)
        try:
            result = opened.side.conclude(lambda: compare(opened))
            result.write(opened.folder.result_file)
            logger.info("job %s: this firm keeps the %s model", opened.job.id, result.keeps.value)
        except Exception:  # in a thread of its own, where nobody else would hear of it
            logger.exception("the result of job %s could not be written", opened.job.id)
        finally:
            opened.trainer.close()

    def _refuse(self, code: RefusalCode, error: DureError, request: Request | None) -> Reaction:
        logger.warning("refused (%s): %s", code.value, error)
        if request is not None:
            note_refusal(self._home, self._job_of(request), code, str(error), utc_now())
        return Reaction(Refusal(self._name, code))

    def _job_of(self, request: Request) -> str | None:
        """The id of the job that a request is about, if it is known here."""
        try:
            if isinstance(request, Proposal):
                return JobFile.from_bytes(request.job).id
            return None if isinstance(request, Hello) else self._known(request.job_digest).id
        except DureError:
            return None


def _code_of(error: DureError) -> RefusalCode:
    """What the operator may hear of an error."""
    match error:
        case RefusedError():
            return error.code
        case TrainerError():
            return error.refusal
        case SandboxError():
            return RefusalCode.SANDBOX
        case OutOfRangeError():  # NaN in an update or a metric: the training went astray
            return RefusalCode.TRAINING
        case MessageError() | JobFileError():
            return RefusalCode.MALFORMED
    return RefusalCode.INTERNAL


def _limits(policy: Policy) -> FirmLimits:
    return FirmLimits(
        policy.minimum_cohort,
        policy.minimum_difference,
        policy.minimum_statistics_difference,
        policy.minimum_rows,
    )


def _request(body: bytes) -> Request:
    message = decode(body)
    if not isinstance(message, Request):
        raise MessageError(f"a coordinator does not send {type(message).__name__}")
    return message
