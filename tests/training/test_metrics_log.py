import pytest

from kdcli.errors import IntegrityError
from kdcli.training.metrics_log import METRICS, TIMING, MetricsLog, read_metrics


def written(folder, steps=3):
    metrics_log = MetricsLog(folder)
    for step in range(1, steps + 1):
        metrics_log.write({"step": step, "loss": 1.0 / step}, {"step": step, "seconds": 0.5})
    marks = metrics_log.settle()
    metrics_log.close()
    return marks


def test_what_was_written_after_the_last_checkpoint_is_cut_off(tmp_path):
    marks = written(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in (METRICS, TIMING)}
    for name in (METRICS, TIMING):
        (tmp_path / name).write_bytes(whole[name] + b'{"step": 4, "lo')
    metrics_log = MetricsLog(tmp_path, *marks)
    metrics_log.close()
    assert {name: (tmp_path / name).read_bytes() for name in (METRICS, TIMING)} == whole
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("name", [METRICS, TIMING])
@pytest.mark.parametrize("bit", [0, 77, 200])
def test_a_bit_that_fell_over_before_the_run_was_done_is_found(tmp_path, name, bit):
    marks = written(tmp_path)
    raw = bytearray((tmp_path / name).read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(IntegrityError, match="digest differs from the newest checkpoint's") as caught:
        MetricsLog(tmp_path, *marks)
    assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("name", [METRICS, TIMING])
def test_a_log_that_is_too_short_is_refused(tmp_path, name):
    marks = written(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="bytes"):
        MetricsLog(tmp_path, *marks)


def test_the_digest_of_a_log_is_that_of_all_its_lines(tmp_path):
    marks = written(tmp_path)
    metrics_log = MetricsLog(tmp_path, *marks)
    metrics_log.write({"step": 4, "loss": 0.1}, {"step": 4, "seconds": 0.5})
    after = metrics_log.settle()
    metrics_log.close()
    again = MetricsLog(tmp_path, *after)
    assert again.digests() == {METRICS: after[0].sha256, TIMING: after[1].sha256}
    again.close()
