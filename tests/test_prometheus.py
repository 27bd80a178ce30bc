import stat
from pathlib import Path

import pytest
from salvor import prometheus, secrets
from salvor.errors import CannotError, UsageError
from salvor.prometheus import Metric

AGE = Metric(
    "salvor_backup_age_seconds",
    "Age of the newest\nusable backup.",
    [({"service": "orders"}, 12), ({"service": "a"}, 3.5)],
)


def test_figures_are_written_as_prometheus_reads_them() -> None:
    assert prometheus.text([AGE, Metric("salvor_looked_at", "When.", [({}, 1.5e9)])]) == (
        "# HELP salvor_backup_age_seconds Age of the newest\\nusable backup.\n"
        "# TYPE salvor_backup_age_seconds gauge\n"
        'salvor_backup_age_seconds{service="orders"} 12.0\n'
        'salvor_backup_age_seconds{service="a"} 3.5\n'
        "# HELP salvor_looked_at When.\n"
        "# TYPE salvor_looked_at gauge\n"
        "salvor_looked_at 1500000000.0\n"
    )


def test_what_has_no_samples_is_left_out() -> None:
    assert prometheus.text([Metric("salvor_nothing", "Nothing.", [])]) == ""


def test_labels_are_escaped_and_masked() -> None:
    secrets.remember("hunter2-of-prometheus")
    metric = Metric("salvor_x", "X.", [({"why": 'a "b"\\c\nd hunter2-of-prometheus'}, 1)])
    assert prometheus.text([metric]).splitlines()[-1] == r'salvor_x{why="a \"b\"\\c\nd [secret]"} 1.0'


@pytest.mark.parametrize("wrong", [Metric("1x", "", [({}, 1)]), Metric("x", "", [({"a-b": ""}, 1)])])
def test_a_name_that_prometheus_refuses_is_refused(wrong: Metric) -> None:
    with pytest.raises(ValueError, match="no name for Prometheus"):
        prometheus.text([wrong])


def test_a_file_of_figures_can_be_read_by_the_exporter(tmp_path: Path) -> None:
    path = tmp_path / "salvor.prom"
    prometheus.write(path, [AGE])
    prometheus.write(path, [AGE])
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.read_text() == prometheus.text([AGE])
    assert [one.name for one in tmp_path.iterdir()] == ["salvor.prom"]


def test_figures_of_another_platform_or_command_and_what_are_none_are_not_written_over(tmp_path: Path) -> None:
    def checked(command: str, platform: str, **labels: str) -> Metric:
        return Metric(f"salvor_{command}_checked_timestamp_seconds", "When.", [({"platform": platform, **labels}, 1)])

    path = tmp_path / "salvor.prom"
    prometheus.write(path, [checked("backup", "shop", system="a"), checked("backup", "shop", system="b")])
    before = path.read_text()
    for other in (checked("backup", "store"), checked("readiness", "shop")):
        with pytest.raises(CannotError, match="holds the backup figures of shop, which would be gone") as refused:
            prometheus.write(path, [other])
        assert refused.value.hint.endswith(f"rm {path}")
    assert path.read_text() == before
    prometheus.write(path, [checked("backup", "shop", system="b")])
    assert '"a"' not in path.read_text(), "a system that is described no more"
    path.write_text("systems:\n")
    with pytest.raises(CannotError, match="holds what is no figures of Salvor"):
        prometheus.write(path, [checked("backup", "shop")])
    with pytest.raises(UsageError, match="those of its other services would be gone") as asked:
        prometheus.check_file(str(path), "orders")
    assert asked.value.safe == f"{path} is as it was"
