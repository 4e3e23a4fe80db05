"""A whole job in one process, for researchers and tests: the product's two apps, without a network.

`InProcessGrid` is a flwr Grid whose nodes are ClientApps in this process; what passes are real Flower messages.
`make_home` and `introduce` make firms without a server, `run_in_process` runs a job over them. The firms' trainers are
processes of their own, as everywhere.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from dure_client.approvals import Verdict, decide
from dure_client.firm import Firm
from dure_client.flower import client_app
from dure_client.home import AgentConfig, AgentHome, keep_or_make_private, write_file
from dure_client.policy import DEFAULT_TEXT, allow_model, pin_firm, read_text
from dure_models.digest import model_digest
from dure_protocols.errors import MisuseError
from dure_protocols.frames import COORDINATOR_NODE_ID, message_id, node_id, reply_id
from dure_protocols.identity import Identity
from dure_protocols.job import JobFile
from dure_protocols.secagg.firm import Randomness
from dure_server.coordinator.record import JobRecord
from dure_server.coordinator.rounds import Coordinator
from dure_server.flower import run_app, server_app
from dure_server.store import JobState, Store
from dure_server.coordinator.firms import Firms

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

logger = logging.getLogger(__name__)

APP_FAILED = 2  # flwr's number for "the ClientApp raised"
NOWHERE = "localhost"  # where the server of a firm without a server is
