"""Trainings of a search run as leaf deployments; the flow that searches submits, watches and gives them up.

The watcher holds no slot that a training needs, and a training waits for no other run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.logging import get_run_logger

from flows._leaf_server import LeafServer, reason_of
from flows._watcher import LOST_AT_MOST
from tasks.errors import TrackingError
from tasks.train.task import note_trial, trial_curve

if TYPE_CHECKING:
    from tasks.train.study import Search, Training

POLL_SECONDS = 1.0
OBSERVE_SECONDS = 10.0


class Trials:
    """One watch over the trainings of a search.

    Args:
        server: of the leaf that trains.
        search: what to train, and what is known of it.
        parent_run: MLflow run that the trainings' runs belong to.
    """

    def __init__(self, server: LeafServer, search: Search, parent_run: str) -> None:
        self.server = server
        self.search = search
        self.parent_run = parent_run
        self.log = get_run_logger()
        self.running: dict[UUID, Training] = {}
        self.lost: dict[int, int] = {}
        minutes = search.parameters.search_minutes
        self.ends = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        self.observed = 0.0

    def watch(self) -> None:
        """Return when all trainings have ended, or the time is over.

        Raises:
            RunError: nothing but failures.
        """
        wanted = self.search.parameters.trials
        progress: Any = create_progress_artifact(progress=0.0, description="Trials")
        for training in self.search.running():
            self.log.info("Trial %d goes on", training.number)
            self._submit(training)
        self._fill()
        while self.running:
            time.sleep(POLL_SECONDS)
            if time.monotonic() > self.ends:
                self._give_up_all("the time for the search was over")
                break
            self._look()
            if time.monotonic() - self.observed > OBSERVE_SECONDS:
                self.observed = time.monotonic()
                self._observe()
            self._fill()
            ended = sum(row["state"] != "running" for row in self.search.rows())
            update_progress_artifact(progress, progress=min(100.0, 100.0 * ended / wanted))
        update_progress_artifact(progress, progress=100.0)

    def _fill(self) -> None:
        while len(self.running) < self.search.parameters.trials_at_once and time.monotonic() < self.ends:
            training = self.search.next()
            if training is None:
                return
            self._submit(training)

    def _submit(self, training: Training) -> None:
        generation, parameters = self.lost.get(training.number, 0), self.search.parameters
        while True:
            run = self.server.start(
                {"plan_uri": training.plan_uri, **({"node": 0} if parameters.on_nodes else {})},
                name=f"trial {training.number} {self.search.key[:8]}",
                key=f"{self.search.key}-{training.number}-{generation}",
            )
            if run.state is None or not run.state.is_final():
                self.running[run.id] = training
                return
            # The key belongs to a run of an earlier flow: a result counts, anything else is done anew.
            if run.state.is_completed() and self.search.complete(training):
                return
            generation += 1

    def _look(self) -> None:
        runs = self.server.runs(list(self.running))
        if runs is None:  # the server is too busy to answer
            return
        for identifier in set(self.running) - {run.id for run in runs}:  # deleted by a person
            self._again(self.running.pop(identifier), "its run was deleted")
        for run in runs:
            self._judge(run)

    def _judge(self, run: FlowRun) -> None:
        if run.state is None or not run.state.is_final():
            return
        training = self.running.pop(run.id)
        if run.state.is_completed() and self.search.complete(training):
            self.log.info("Trial %d has ended", training.number)
        elif run.state.is_failed():
            self.search.fail(training, reason_of(run.state))
            self.log.warning("Trial %d failed: %s", training.number, reason_of(run.state))
        else:
            self._again(training, f"its run ended as {run.state.name}")

    def _again(self, training: Training, why: str) -> None:
        lost = self.lost[training.number] = self.lost.get(training.number, 0) + 1
        if lost > LOST_AT_MOST:
            self.search.fail(training, f"lost {lost} times; the last time {why}")
            return
        self.log.warning("Trial %d is submitted again, %s", training.number, why)
        self._submit(training)

    def _observe(self) -> None:
        parameters = self.search.parameters
        for identifier, training in list(self.running.items()):
            try:
                curve = trial_curve(
                    parameters.output_name, training.run_key, parameters.monitor, self.parent_run
                )
            except TrackingError as error:  # nothing is given up without its curve; a search outlasts that
                self.log.warning("Trial %d cannot be looked at now: %s", training.number, error)
                return
            if self.search.observe(training, curve):
                del self.running[identifier]
                self._give_up(identifier, training, "worse than the others at the same point")

    def _give_up_all(self, why: str) -> None:
        for identifier, training in self.running.items():
            self._give_up(identifier, training, why)
        self.running.clear()

    def _give_up(self, identifier: UUID, training: Training, why: str) -> None:
        self.search.prune(training, why)
        self.server.cancel(identifier, why)
        note_trial(self.search.parameters.output_name, training.run_key, why)
        self.log.info("Trial %d is given up: %s", training.number, why)
