from __future__ import annotations

from capfilt.service.job import Job, name_of


def test_name_is_readable_the_same_each_time_and_another_for_each_output() -> None:
    name = name_of("s3://bucket/My dataset/")
    assert name == name_of("s3://bucket/My dataset")
    assert name.startswith("my-dataset-")
    assert len({name, name_of("s3://other/My dataset"), name_of("s3://bucket/my dataset")}) == 3
    assert name_of("s3://bucket/数据").startswith("output-")


def test_job_knows_its_name_and_number() -> None:
    job = Job(f"{name_of('/data/out')}-12", "RUNNING", "/web", "/data/out", 1.0, None, "")
    assert (job.name, job.number, job.is_over) == (name_of("/data/out"), 12, False)
