"""The walk-through for firms, docs/for-firms.md, command by command: real processes, a real server on loopback."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dure_client.home import AgentHome, write_file
from dure_client.jobs.approvals import known_job
from dure_client.policy import allow_model, pin_firm, read_text
from dure_lab.consortium import LocalConsortium
from dure_lab.datasets import milling
from dure_models.digest import model_digest
from dure_protocols.invitation import read_invitation
from dure_protocols.job import JobFile
from dure_server.enrolment.operator import Operator
from tests.end_to_end import tiny

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "for-firms.md").read_text()
FIRM, OTHERS = "alder", ("birch", "cedar")
ROWS_FOLDER = "/srv/mill-rows"
STAYS = ("dure-agent run", "dure-agent ui")


def fenced(language: str) -> list[str]:
    """What stands in the page's boxes of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


class Walk:
    """The firm's people at their machine; what operator and other firms do meanwhile is done by `after`."""

    def __init__(self, consortium: LocalConsortium) -> None:
        self.consortium = consortium
        self.work = consortium.folder / "work"
        self.rows = self.work / "rows"
        self.rows.mkdir(parents=True)
        self.home = AgentHome(self.work / "home")
        self.operator = Operator(consortium.store, consortium.settings.enrolment_url, "operator")
        self.job: JobFile | None = None
        self.agent: subprocess.Popen[bytes] | None = None
        invitation = self.operator.invite(FIRM).to_text()
        (self.work / "mill.invitation").write_text(invitation)
        shutil.copy(DOCS / "verify_ledger.py", self.work)
        shutil.copy(consortium.folder / "contract.toml", self.work)
        for name in ("train", "test"):
            tiny.rows_of(FIRM).write_parquet(self.rows / f"{name}.parquet")
        self.words = {"FINGERPRINT": read_invitation(invitation).root_fingerprint, "MODEL": milling.task().model}
        self.words["JOB"] = "first"
        bin_folder = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "DURE_AGENT_HOME": str(self.home.path),
            "DURE_AGENT_UI_PORT": "0",
            "PYTHONUNBUFFERED": "1",
        }

    def follow(self, line: str) -> None:
        """Give one line of the page, once for each other firm if it names one."""
        for other in OTHERS if "OTHER" in line else ("",):
            if other:
                theirs = self.consortium.agents[other].identity().fingerprint
                self.words |= {"OTHER": other, "OTHER_FINGERPRINT": theirs}
            given = re.sub(r"\b[A-Z]+(_[A-Z]+)?\b", lambda word: self.words[word[0]], line)
            given = given.replace(ROWS_FOLDER, str(self.rows))
            if line in STAYS:
                self.start(line, given)
            else:
                done = subprocess.run(
                    given, shell=True, cwd=self.work, env=self.environment, stdin=subprocess.DEVNULL,
                    capture_output=True, text=True, timeout=120, check=False,
                )  # fmt: skip
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}\n{tiny.last_words(self.consortium)}"
        self.after(line)

    def start(self, line: str, given: str) -> None:
        """Start a command that runs until it is stopped."""
        log = self.work / "stays.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                f"exec {given}", shell=True, cwd=self.work, env=self.environment, stdout=out, stderr=out,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        if line == "dure-agent run":
            self.agent = process
            return
        try:
            deadline = time.monotonic() + 30
            while not (told := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            with urllib.request.urlopen(told[0], timeout=10) as page:
                assert page.status == 200
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)

    def after(self, line: str) -> None:
        """What others do when the firm has done this."""
        if line.startswith("dure-agent join"):
            self.words["FIRM_FINGERPRINT"] = self.home.identity().fingerprint
            self.operator.approve(FIRM, self.words["FIRM_FINGERPRINT"])
            self.introduce_others()
        elif line == "dure-agent data init":
            (mapping,) = fenced("toml")
            write_file(self.home.data_file, mapping.replace(ROWS_FOLDER, str(self.rows)).encode())
        elif line == "dure-agent run":
            self.job = self.consortium.propose(tiny.draft(self.consortium, self.words["JOB"], rounds=1))
            tiny.approve(self.consortium, self.job)
            tiny.until((self.home.job_folder(self.job.id) / "job.json").exists, self.consortium)
            self.words["DIGEST"] = known_job(self.home, self.job.id).job.digest().hex()
        elif line.startswith("dure-agent approve"):
            job = self.job
            assert job is not None
            tiny.until(lambda: tiny.is_finished(self.consortium, job), self.consortium)
            tiny.until(lambda: tiny.result(self.home, job), self.consortium)

    def introduce_others(self) -> None:
        """The other firms pin each other and this one; this one's own policy is left to the page."""
        model = self.words["MODEL"]
        prints = {name: home.identity().fingerprint for name, home in self.consortium.agents.items()}
        prints[FIRM] = self.words["FIRM_FINGERPRINT"]
        for name, home in self.consortium.agents.items():
            text = allow_model(read_text(home.policy_file), model, model_digest(model))
            for other, value in prints.items():
                text = text if other == name else pin_firm(text, other, value)
            write_file(home.policy_file, text.encode())
            tiny.give_data(home, tiny.rows_of(name))
            self.consortium.start_agent(name)

    def close(self) -> None:
        """Stop the agent."""
        if self.agent is not None and self.agent.poll() is None:
            self.agent.terminate()
            self.agent.wait(20)


@pytest.fixture
def walk() -> Iterator[Walk]:
    with tiny.founded() as consortium:
        for other in OTHERS:
            consortium.enrol(other)
        made = Walk(consortium)
        try:
            yield made
        finally:
            made.close()


def test_every_command_of_the_walk_through_works_in_the_order_of_the_page(walk: Walk) -> None:
    for line in "".join(fenced("sh")).splitlines():
        walk.follow(line)
    assert walk.agent is not None
    assert (walk.work / "left.jsonl").exists()
    assert (walk.work / "left.html").exists()
    assert (walk.work / "unit-files").is_dir()


def test_no_command_of_the_page_stands_where_it_would_not_be_run() -> None:
    assert set(re.findall(r"^```(\w+)$", PAGE, re.MULTILINE)) == {"sh", "toml"}
    assert not re.search(r"^( {4}|~~~)", PAGE, re.MULTILINE)
