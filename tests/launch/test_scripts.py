"""Launch files, checked without a cluster: shellcheck, and what the parts of a file must agree on."""

import math
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(path for path in LAUNCH.rglob("*") if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_right(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([shellcheck, str(path)], check=True)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_without_arguments_say_how_they_are_used(path):
    found = subprocess.run(["bash", str(path)], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("usage: ")


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.suffix == ".sbatch"], ids=lambda path: path.name)
def test_slurm_jobs_save_before_their_end_and_are_requeued(path):
    text = path.read_text()
    for line in ("#SBATCH --signal=TERM@120", "#SBATCH --requeue", "#SBATCH --open-mode=append"):
        assert line in text
    assert "scontrol requeue" in text


def test_the_job_set_has_a_host_for_every_four_chips():
    (job_set,) = yaml.safe_load_all((LAUNCH / "gke" / "jobset.yaml").read_text())
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = job_set["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = math.prod(
        int(side) for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    )
    assert spec["parallelism"] == spec["completions"]
    assert spec["completions"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    assert "--multihost" in container["args"]
