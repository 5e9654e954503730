"""No network call that nobody asked for, and no port that serves a stranger."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.faults.conftest import Undisturbed, command, undisturbed  # noqa: F401 - a fixture
from tests.run.conftest import captioner, filter_, hashes  # noqa: F401 - fixtures

# A network of loopback and of one way out, which leads nowhere and counts what is sent there: any
# packet of any protocol, a question to a name server too. What this machine sends to its own
# address does not take that way.
_NETWORK = """
set -e
ip link set lo up
ip link add out type veth peer name nowhere
sysctl -qw net.ipv6.conf.all.disable_ipv6=1
ip address add 192.0.2.1/24 dev out
ip link set out arp off up
ip link set nowhere up
ip route add default via 192.0.2.2 dev out
set +e
%s
echo "sent $(awk '$1 == "out:" { print $11 }' /proc/net/dev)"
"""


def in_a_counting_network(script: str) -> str:
    """What a shell script prints there, and how many packets left: `sent 0`."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs ip and unshare")
    trial = subprocess.run(["unshare", "-nm", "sh", "-c", _NETWORK % ""], capture_output=True)
    if trial.returncode:
        pytest.skip("a network of its own is not permitted here")
    done = subprocess.run(
        ["unshare", "-nm", "sh", "-c", _NETWORK % script],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert "sent" in done.stdout, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "call",
    [
        "socket(AF_INET, SOCK_DGRAM).sendto(b'x', ('192.0.2.9', 9))",
        "getaddrinfo('huggingface.invalid', 443)",
        "create_connection(('203.0.113.1', 443), timeout=0.1)",
    ],
)
def test_counting_network_counts_a_call(call: str) -> None:
    asked = shlex.join([sys.executable, "-c", f"from socket import *; {call}"])
    assert not in_a_counting_network(asked).endswith("sent 0\n")


def test_run_in_one_process_sends_nothing(
    undisturbed: Undisturbed,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Models from folders, shards from a folder: no hub, no telemetry, no look-up of a name."""
    arguments = shlex.join(command(undisturbed, tmp_path / "out", "--local"))
    shown = in_a_counting_network(f"{arguments} >{tmp_path}/result.json")
    assert json.loads((tmp_path / "result.json").read_text())["shards"]["failed"] == []
    assert hashes(tmp_path / "out") == undisturbed.hashes
    assert shown == "sent 0\n"


@pytest.mark.slow
def test_other_commands_send_nothing(
    undisturbed: Undisturbed,  # noqa: F811
    tmp_path: Path,
) -> None:
    """What looks at an output, what makes another of it, and a training."""
    out, models = Path(undisturbed.web).parent / "out", undisturbed.config
    sizes = f"{{datasets: [{{path: {undisturbed.web}}}], image_size: 32, max_tokens: 12}}"
    words = [
        ["status", out],
        ["verify", out],
        ["plan", undisturbed.web, "--captioner", models.captioner, "--filter", models.filter],
        ["report", out],
        ["select", out, tmp_path / "less", "--min-match", "0.6"],
        ["diff", out, tmp_path / "less"],
        ["export", tmp_path / "less", tmp_path / "blip", "--form", "blip"],
        ["evaluate", "noise", out],
        [
            *("train", "blip_finetune_captioner", "--out", tmp_path / "trained"),
            *("--set", f"model.start={models.captioner}", "--set", "model.image_size=32"),
            *("--set", f"data={sizes}", "--set", "loop.batch_size=4", "--set", "loop.steps=1"),
        ],
    ]
    asked = [shlex.join([sys.executable, "-m", "capfilt", *map(str, each)]) for each in words]
    lines = [f"{each} >>{tmp_path}/said 2>&1 || echo failed: {each}" for each in asked]
    shown = in_a_counting_network("\n".join(lines))
    assert shown == "sent 0\n", (tmp_path / "said").read_text()[-3000:]
    assert (tmp_path / "trained" / "captioner" / "model.safetensors").is_file()


def test_run_on_ray_asks_for_its_cloud_at_most_and_keeps_its_dashboard_on_loopback(
    undisturbed: Undisturbed,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Ray's dashboard asks the metadata service which cloud it is in, whatever one sets."""
    ports, names = tmp_path / "ports", tmp_path / "hosts"
    known = Path("/etc/hosts").read_text()
    names.write_text(f"{known}\n127.0.0.1 metadata.google.internal\n")
    arguments = shlex.join(command(undisturbed, tmp_path / "out", "--workers", "1"))
    shown = in_a_counting_network(
        f"ip route add blackhole 169.254.169.254\n"
        f"mount --bind {names} /etc/hosts\n"
        f"{arguments} >{tmp_path}/result.json & run=$!\n"
        f"while kill -0 $run 2>/dev/null; do ss -Hltn >>{ports}; sleep 0.5; done; wait $run"
    )
    assert json.loads((tmp_path / "result.json").read_text())["shards"]["failed"] == []
    assert hashes(tmp_path / "out") == undisturbed.hashes
    assert shown == "sent 0\n"
    listening = {line.split()[3] for line in ports.read_text().splitlines()}
    assert {place for place in listening if place.endswith(":8265")} == {"127.0.0.1:8265"}


_OWNER = """
import sys, ray, ray._private.worker
from capfilt.cluster import connect
connect(None)
print(ray.get_runtime_context().gcs_address, ray._private.worker.get_dashboard_url(), flush=True)
sys.stdin.read()
"""
_CALLER = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print('let in')"


def test_ray_started_here_serves_nobody_without_its_token(tmp_path: Path) -> None:
    """Its ports are on every interface: what keeps strangers out is the token in a home folder."""
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER],
        env=bare | {"HOME": str(own)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        address, dashboard = owner.stdout.readline().split()
        found = {
            home: subprocess.run(
                [sys.executable, "-c", _CALLER, address],
                env=bare | {"HOME": str(home), "RAY_AUTH_MODE": mode},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            for home, mode in ((own, "token"), (other, "disabled"))
        }
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"http://{dashboard}/api/jobs/", timeout=60)
        owner.stdin.close()
    assert found[own].stdout == "let in\n"
    assert found[other].returncode != 0
    assert found[other].stdout == ""
