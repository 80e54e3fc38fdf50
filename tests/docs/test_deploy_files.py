"""What docs/deploy holds is valid, names what is there, and runs commands that compose; without docker or a cluster."""

import os
import re
import shlex
import subprocess
import tomllib

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from optkit.core.errors import UserError
from optkit.core.interruption import GRACE_S
from tests.docs.blocks import ROOT
from tests.docs.test_code_blocks import compose

FOLDER = ROOT / "docs/deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_THE_COMMAND = ("log=json",)  # arguments that are no overrides


@pytest.fixture(scope="module")
def dockerfile():
    """The instructions of the Dockerfile: a word and its arguments."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


@pytest.fixture(scope="module")
def job():
    (claim, found) = yaml.safe_load_all((FOLDER / "job.yaml").read_text())
    assert (claim["kind"], found["kind"]) == ("PersistentVolumeClaim", "Job")
    return {"claim": claim, **found["spec"]}


@pytest.fixture
def pod(job):
    return job["template"]["spec"]


def last(dockerfile, word):
    return [argument for name, argument in dockerfile if name == word][-1]


def recipe_of(arguments):
    """The recipe that ``optkit run`` builds of a command line."""
    command, recipe, *overrides = arguments
    assert command == "run"
    (built,) = compose(recipe, [one for one in overrides if one not in OF_THE_COMMAND])
    return built


def test_the_image_copies_what_is_there_and_leaves_out_nothing_that_the_wheel_needs(dockerfile):
    copied = [argument.split()[:-1] for name, argument in dockerfile if name == "COPY" and "--from" not in argument]
    assert copied
    assert all((ROOT / source).exists() for sources in copied for source in sources)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().split("\n")
    for needed in (".git", "pyproject.toml", "optkit", "conf", "recipes", "README.md", "LICENSE", "constraints.txt"):
        assert (ROOT / needed).exists()
        assert needed not in ignored


def test_the_image_has_a_python_and_extras_that_optkit_has(dockerfile):
    version = re.search(r"python:([\d.]+)", last(dockerfile, "FROM")).group(1)
    assert version in SpecifierSet(PROJECT["requires-python"])
    extras = next(a.partition("=")[2] for n, a in dockerfile if n == "ARG" and a.startswith("EXTRAS"))
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    installs = " ".join(argument for name, argument in dockerfile if name == "RUN")
    assert installs.count("--constraint") == 2
    assert "g++" in installs, "the inductor engine needs a compiler"


def test_the_image_runs_a_recipe_as_no_root_on_its_volumes(dockerfile):
    command = yaml.safe_load(last(dockerfile, "ENTRYPOINT")) + yaml.safe_load(last(dockerfile, "CMD"))
    assert command[0] in PROJECT["scripts"]
    assert recipe_of(command[1:]).name == "quickstart"
    assert int(last(dockerfile, "USER").split(":")[0]) > 0
    volumes = yaml.safe_load(last(dockerfile, "VOLUME"))
    assert last(dockerfile, "WORKDIR") in volumes
    cache = dict(word.split("=") for word in last(dockerfile, "ENV").split())["OPTKIT_CACHE"]
    assert any(cache.startswith(f"{volume}/") for volume in volumes)


def test_the_job_runs_a_recipe_whose_results_outlive_its_pod(job, pod):
    (container,) = pod["containers"]
    recipe = recipe_of(container["args"])
    claimed = {v["name"] for v in pod["volumes"] if v.get("persistentVolumeClaim", {}).get("claimName") == "optkit"}
    assert job["claim"]["metadata"]["name"] == "optkit"
    mounted = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in claimed]
    for place in (recipe.out, recipe.store):
        assert any(place.startswith(f"{path}/") for path in mounted)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_job_has_its_cores_alone_and_uses_all_of_them(pod):
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert recipe_of(pod["containers"][0]["args"]).threads == int(resources["limits"]["cpu"])


def test_the_job_waits_for_a_checkpoint_and_does_not_repeat_a_mistake(job, pod):
    assert pod["terminationGracePeriodSeconds"] > GRACE_S
    (codes,) = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert codes["values"] == [UserError.exit_code]
    assert codes["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never", "a pod failure policy asks for it"


def test_the_job_runs_as_the_user_of_the_image(dockerfile, pod):
    user, group = map(int, last(dockerfile, "USER").split(":"))
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["runAsNonRoot"]) == (user, group, True)


@pytest.fixture
def slurm(tmp_path):
    """Runs the script beside an ``srun`` that ends as told; gives the exit code, and what each command was called with."""

    def run(code, *arguments):
        for name, ends in (("srun", code), ("scontrol", 0)):
            file = tmp_path / name
            file.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/{name}.txt\nexit {ends}\n')
            file.chmod(0o755)
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3",
            "OPTKIT_SHARED": "/shared",
        }  # fmt: skip
        done = subprocess.run([FOLDER / "slurm.sh", *arguments], env=environment, check=False)
        called = {file.stem: file.read_text().splitlines() for file in tmp_path.glob("*.txt")}
        return done.returncode, called

    return run


def test_the_slurm_script_runs_a_recipe_on_shared_folders(slurm):
    code, called = slurm(0, "quickstart", "seed=3")
    assert code == 0
    assert "scontrol" not in called
    place = called["srun"].index("optkit")
    assert called["srun"][:place] == ["--cpus-per-task=3"]
    recipe = recipe_of(called["srun"][place + 1 :])
    assert (recipe.out, recipe.store, recipe.threads, recipe.seed) == ("/shared/runs", "/shared/store", 3, 3)


def test_the_slurm_script_goes_on_after_a_signal_and_only_then(slurm):
    assert slurm(143) == (143, {"srun": slurm(143)[1]["srun"], "scontrol": ["requeue", "7"]})


@pytest.mark.parametrize("code", [1, 2])
def test_the_slurm_script_does_not_repeat_a_failure(slurm, code):
    ended, called = slurm(code)
    assert ended == code
    assert "scontrol" not in called


def test_slurm_signals_the_step_before_its_time_is_over():
    text = (FOLDER / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    name, seconds = options["signal"].split("@")
    assert name == "TERM"
    assert int(seconds) > GRACE_S
    assert shlex.split(text.splitlines()[0][2:])[-1] == "bash"
