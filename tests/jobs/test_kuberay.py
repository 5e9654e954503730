"""The manifests for KubeRay, against its rules.

Which fields there are is restated from the API reference of KubeRay 1.6 (ray.io/v1) and of
Kubernetes 1.28, what the operator refuses from its own validation; a field that neither names makes
`kubectl apply` fail.
"""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import ClickException

from capfilt.service.cluster import _STOP_WITHIN_S
from tests.jobs.conftest import fill

Tree = dict[str, Any]

JOB = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "entrypoint": str,
    "rayClusterSpec": dict,
    "runtimeEnvYAML": str,
    "shutdownAfterJobFinishes": bool,
    "submissionMode": str,
    "submitterConfig": dict,
    "suspend": bool,
    "ttlSecondsAfterFinished": int,
}
CLUSTER = {
    "autoscalerOptions": dict,
    "enableInTreeAutoscaling": bool,
    "headGroupSpec": dict,
    "rayVersion": str,
    "workerGroupSpecs": list,
}
GROUP = {"rayStartParams": dict, "template": dict}
WORKERS = {
    **GROUP,
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "idleTimeoutSeconds": int,
}
POD = {
    "containers": list,
    "nodeSelector": dict,
    "restartPolicy": str,
    "serviceAccountName": str,
    "terminationGracePeriodSeconds": int,
    "tolerations": list,
    "volumes": list,
}
CONTAINER = {
    "env": list,
    "envFrom": list,
    "image": str,
    "lifecycle": dict,
    "name": str,
    "resources": dict,
    "volumeMounts": list,
}
CLAIM = {"claimName": str, "readOnly": bool}
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035
NAME_MAX = 47  # the operator adds to it for the cluster and its services
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[KMGT]i?)?")


def problems(manifest: Tree) -> list[str]:
    """What KubeRay or Kubernetes would refuse, or what would not work as the page says."""
    return list(_job(manifest))


def _fields(found: Tree, known: dict[str, type], where: str) -> Iterator[str]:
    for name, value in found.items():
        if name not in known:
            yield f"{where}.{name}: no such field"
        elif type(value) is not known[name]:
            yield f"{where}.{name}: is to be {known[name].__name__}, is {value}"


def _job(manifest: Tree) -> Iterator[str]:
    spec, name = manifest["spec"], manifest["metadata"]["name"]
    if (manifest["apiVersion"], manifest["kind"]) != ("ray.io/v1", "RayJob"):
        yield "kind"
    if len(name) > NAME_MAX or not LABEL.fullmatch(name):
        yield f"metadata.name: {name}"
    yield from _fields(spec, JOB, "spec")
    # The operator counts a wrong config as a failure like any other and tries it again, on a new
    # cluster each time: so few times only.
    if not 1 <= spec.get("backoffLimit", 0) <= 3:
        yield "spec.backoffLimit: a spot machine is to cost a try, a wrong config only a few"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "spec.ttlSecondsAfterFinished: negative"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "spec.shutdownAfterJobFinishes: its GPUs would be kept"
    cluster = spec["rayClusterSpec"]
    yield from _fields(cluster, CLUSTER, "rayClusterSpec")
    yield from _head(cluster["headGroupSpec"])
    groups = cluster["workerGroupSpecs"]
    if len({group["groupName"] for group in groups}) != len(groups):
        yield "workerGroupSpecs: a name twice"
    for group in groups:
        yield from _workers(group)
    for pod in (cluster["headGroupSpec"], *groups):
        yield from _mounts(pod, spec["entrypoint"])


def _head(head: Tree) -> Iterator[str]:
    yield from _fields(head, GROUP, "headGroupSpec")
    yield from _start("head", head["rayStartParams"], "--head")
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "headGroupSpec: workers would be started beside the driver"
    yield from _pod("head", head["template"]["spec"])


def _workers(group: Tree) -> Iterator[str]:
    name = group["groupName"]
    yield from _fields(group, WORKERS, name)
    yield from _start(name, group["rayStartParams"], "--address=head:6379")
    if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        yield f"{name}: replicas outside their bounds"
    pod = group["template"]["spec"]
    yield from _pod(name, pod)
    [container] = pod["containers"]
    # Operators that tell Ray the limit alone would have it count the cores of the whole machine.
    if group["rayStartParams"].get("num-cpus") != container["resources"]["requests"]["cpu"]:
        yield f"{name}: num-cpus is to be what is asked for"
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    try:
        stop = ray_command(command)
    except ClickException as error:
        yield f"{name}: preStop: {error}"
        return
    if not 0 < stop["grace_period"] < pod.get("terminationGracePeriodSeconds", 30):
        yield f"{name}: Kubernetes kills the pod before Ray has stopped"


def _start(name: str, params: Tree, kind: str) -> Iterator[str]:
    if not all(isinstance(value, str) for value in params.values()):
        yield f"{name}.rayStartParams: strings only"
        return
    try:
        ray_command(["ray", "start", kind, *(f"--{key}={value}" for key, value in params.items())])
    except ClickException as error:
        yield f"{name}.rayStartParams: {error}"


def ray_command(words: list[str]) -> Tree:
    """The values of a command line of Ray's, as Ray parses it."""
    from ray.scripts.scripts import cli

    command = cli.commands[words[1]]
    return dict(command.make_context("ray", words[2:]).params)


def _pod(name: str, pod: Tree) -> Iterator[str]:
    yield from _fields(pod, POD, name)
    for container in pod["containers"]:
        yield from _fields(container, CONTAINER, f"{name}.containers")
        asked, most = container["resources"]["requests"], container["resources"]["limits"]
        for resource, quantity in (*asked.items(), *most.items()):
            if not isinstance(quantity, str) or not QUANTITY.fullmatch(quantity):
                yield f"{name}: {resource}: {quantity}"
        if asked.get("nvidia.com/gpu") != most.get("nvidia.com/gpu"):
            yield f"{name}: GPUs are not overcommitted: ask for as many as the limit"
        if asked["memory"] != most["memory"]:
            yield f"{name}: memory that is asked for and the limit differ"
    if pod["containers"][0]["name"] not in ("ray-head", "ray-worker"):
        yield f"{name}: the first container is Ray's"
    for volume in pod["volumes"]:
        if not LABEL.fullmatch(volume["name"]):
            yield f"{name}: volume {volume['name']}"
        yield from _fields(volume.get("persistentVolumeClaim", {}), CLAIM, f"{name}.volumes")


def _mounts(group: Tree, entrypoint: str) -> Iterator[str]:
    pod = group["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    script = next(word for word in shlex.split(entrypoint) if word.startswith("/"))
    for container in pod["containers"]:
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        if not set(mounts.values()) <= volumes:
            yield "volumeMounts: of no volume"
        if str(Path(script).parent) not in mounts:
            yield f"entrypoint: {entrypoint}: nothing is mounted there"


def load(file: Path) -> Tree:
    found: Tree = yaml.safe_load(file.read_text())
    return found


def filled(job: Path) -> Tree:
    """The job with what a person fills in."""
    file = job / "rayjob.yaml"
    text = re.sub(r"\{FILL_IN: the image[^}]*\}", "images.example.com/capfilt:1", file.read_text())
    file.write_text(re.sub(r"\{FILL_IN: a claim[^}]*\}", "shared", text))
    return load(file)


def test_rayjob_is_what_kuberay_takes_once_it_is_filled_in(job: Path) -> None:
    unfilled = load(job / "rayjob.yaml")
    wrong = problems(unfilled)
    assert wrong
    assert all("FILL_IN" in problem for problem in wrong)
    assert problems(filled(job)) == []


def test_rayjob_has_a_gpu_and_a_cpu_group_of_the_tested_ray(job: Path) -> None:
    cluster = filled(job)["spec"]["rayClusterSpec"]
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pins
    gpu, cpu = cluster["workerGroupSpecs"]
    asked = [g["template"]["spec"]["containers"][0]["resources"]["requests"] for g in (gpu, cpu)]
    assert (gpu["groupName"], cpu["groupName"]) == ("gpu", "cpu")
    assert int(asked[0]["nvidia.com/gpu"]) >= 1
    assert "nvidia.com/gpu" not in asked[1]
    assert gpu["template"]["spec"]["tolerations"]
    assert not cpu["template"]["spec"]["tolerations"]


def _set(path: str, value: Any) -> Callable[[Tree], None]:
    def change(manifest: Tree) -> None:
        at: Any = manifest["spec"]
        *parents, last = path.split("/")
        for key in parents:
            at = at[int(key) if key.isdigit() else key]
        at[last] = value

    return change


_GPU = "rayClusterSpec/workerGroupSpecs/0"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("backofLimit", 2), "no such field"),
        (_set("backoffLimit", 1000), "a wrong config only a few"),
        (_set("backoffLimit", 0), "a spot machine"),
        (_set("rayClusterSpec/headGroupSpec/rayStartParams", {"num-cpus": 0}), "strings only"),
        (_set("rayClusterSpec/headGroupSpec/rayStartParams/no-cpus", "1"), "no-cpus"),
        (_set(f"{_GPU}/replicas", 9), "outside their bounds"),
        (_set(f"{_GPU}/rayStartParams", {}), "num-cpus is to be what is asked for"),
        (_set(f"{_GPU}/template/spec/terminationGracePeriodSeconds", 20), "before Ray has stopped"),
        (_set(f"{_GPU}/template/spec/volumes", [{"name": "other"}]), "of no volume"),
        (_set("entrypoint", "bash /jobs/run.sh"), "nothing is mounted there"),
    ],
)
def test_rules_find_what_is_wrong(job: Path, change: Callable[[Tree], None], said: str) -> None:
    manifest = copy.deepcopy(filled(job))  # aliases of YAML are one object
    change(manifest)
    assert any(said in problem for problem in problems(manifest)), problems(manifest)


def test_raycronjob_says_that_it_is_alpha_and_has_a_schedule(job: Path) -> None:
    from croniter import croniter

    text = (job / "raycronjob.yaml").read_text()
    manifest = yaml.safe_load(text)
    assert "RayCronJob is alpha and needs KubeRay 1.6.0 or newer" in text
    assert "--feature-gates=RayCronJob=true" in text
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCronJob")
    assert set(manifest["spec"]) == {"schedule"}  # jobTemplate is put in by kustomize
    assert croniter.is_valid(manifest["spec"]["schedule"])
    monthly = manifest["spec"]["schedule"].split()[2] == "1"
    assert monthly == ("%Y-%m" in text)  # else the second month finds a finished training


def test_kustomization_brings_every_file_that_the_entrypoint_reads(job: Path) -> None:
    kustomization = load(job / "kustomization.yaml")
    manifest = filled(job)
    generator, _ = kustomization["configMapGenerator"]
    script, names = (job / "run.sh").read_text(), {file.name for file in job.iterdir()}
    assert set(generator["files"]) == {"run.sh", *re.findall(r'"\$here/([\w.]+)"', script)}
    assert {*generator["files"], *kustomization["resources"]} <= names
    volumes = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert {"name": "job", "configMap": {"name": generator["name"]}} in volumes
    assert manifest["metadata"]["annotations"]["config.kubernetes.io/local-config"] == "true"


PLACES = {
    "nightly_capfilt": ("INPUT", "OUTPUT"),
    "pretrain_blip": ("OUT",),
    "pretrain_blip2": ("OUT",),
}


def rendered(job: Path) -> subprocess.CompletedProcess[str]:
    command = ["kubectl", "kustomize", str(job)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_job_that_is_stopped_has_as_long_as_one_that_was_submitted(job: Path) -> None:
    """To give shards back, or to end a step and write a checkpoint."""
    pods = load(job / "rayjob.yaml")["spec"]["rayClusterSpec"]
    [head] = pods["headGroupSpec"]["template"]["spec"]["containers"]
    found = {variable["name"]: variable["value"] for variable in head["env"]}
    submit = (job / "submit.sh").read_text()
    told = re.findall(r'"RAY_JOB_STOP_WAIT_TIME_S": "(\d+)"', submit)
    by_capfilt = [str(_STOP_WITHIN_S)] if "capfilt submit" in submit else []
    assert [found["RAY_JOB_STOP_WAIT_TIME_S"]] == told + by_capfilt


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, which has kustomize in it")
def test_kubectl_renders_the_config_map_and_the_cron_job_with_the_jobs_spec(job: Path) -> None:
    spec = filled(job)["spec"]
    done = rendered(job)
    assert done.returncode == 1
    for name in PLACES[job.name]:
        assert "options.index 1 is out of bounds" in done.stderr
        fill(job, **{name: f"s3://bucket/{name}"})
        done = rendered(job)
    assert done.returncode == 0, done.stderr
    config_map, cron = yaml.safe_load_all(done.stdout)
    assert cron["kind"] == "RayCronJob"
    assert cron["spec"]["jobTemplate"] == spec
    assert config_map["data"]["run.sh"] == (job / "run.sh").read_text()
