"""The pictures of trends."""

from __future__ import annotations

from functools import cached_property

from salvor import clock
from salvor.pages import chart
from salvor.pages.chart import Chart, Series
from salvor.trends import Trends


class Charts:
    """The pictures of one platform's trends; None where nothing was measured."""

    def __init__(self, trends: Trends) -> None:
        self._trends = trends
        self._periods = [each.period.name for each in trends.all]

    @cached_property
    def attainment(self) -> Chart | None:
        """How many percent of the recoveries met their RTO and their RPO."""
        figures = self._trends.all
        rto = Series("RTO met", "first", [each.rto_met.percent for each in figures])
        rpo = Series("RPO met", "second", [each.rpo_met.percent for each in figures])
        return chart.columns(self._periods, [rto, rpo], lambda value: f"{value:.0f} %", top=100.0)

    @cached_property
    def recovery(self) -> Chart | None:
        """Mean seconds to detect and to recover."""
        figures = self._trends.all
        detect = Series("to detect", "second", [each.detect for each in figures])
        recover = Series("to recover", "first", [each.recover for each in figures])
        return chart.columns(self._periods, [detect, recover], clock.write_duration)

    @cached_property
    def downtime(self) -> Chart | None:
        """Seconds of downtime, the sum of all services."""
        series = Series("down", "first", [each.downtime for each in self._trends.all])
        return chart.columns(self._periods, [series], clock.write_duration)

    @cached_property
    def steps(self) -> Chart | None:
        """Median seconds of each step: of all runs, and of the newest period that has any."""
        rows = [
            (
                step.name,
                (("median of all", "second", step.median), (f"median of {step.latest_period}", "first", step.latest)),
            )
            for step in self._trends.steps
        ]
        return chart.bars(rows, clock.write_duration)
