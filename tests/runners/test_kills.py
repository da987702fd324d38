"""A stream on a real Flink is killed twice and loses nothing; the short form of `make kill-matrix`, which kills 20 times for each sink."""

from __future__ import annotations

from support import killing, services


def test_killed_servers_lose_and_double_nothing(tmp_path):
    services.obtain("flink"), services.obtain("kafka")
    told: list[str] = []
    with killing.running("parquet", tmp_path, seed=5, per_second=1_000) as trial:
        found = killing.rounds(trial, ["kill_behind_a_publication", "kill_worker"], told.append)
    assert (found.missing, found.doubled) == (0, 0), told
    assert found.sent > 10_000
