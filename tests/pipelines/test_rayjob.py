"""The manifest of the nightly loop, and the runtime environment for clusters without an image."""

import json
from importlib.metadata import version
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.runtime_env import RuntimeEnv
from referencing import Registry, Resource
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.nightly import loop

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def manifest():
    return yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())


@pytest.fixture(scope="module")
def schema():
    """RayJob's, which takes the cluster's part from RayService's."""
    job, service = (json.loads((HERE / f"{name}.schema.json").read_text()) for name in ("rayjob", "rayservice"))
    found = Resource.from_contents({"$schema": "https://json-schema.org/draft/2020-12/schema", **service})
    registry = Registry().with_resource("rayservice.schema.json", found)
    return jsonschema.Draft202012Validator(job, registry=registry)


def templates(manifest):
    cluster = manifest["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def test_the_manifest_is_a_rayjob_and_its_pods_are_what_kubernetes_takes(manifest, schema):
    schema.validate(manifest)
    newest = kubernetes_validate.latest_version()
    for template in templates(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
        assert kubernetes_validate.validate(pod, newest, strict=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda spec: spec.update(entryPoint="x"), "entryPoint"),
        (lambda spec: spec.pop("entrypoint"), "entrypoint"),
        (lambda spec: spec.update(backoffLimit="2"), "'2'"),
        (lambda spec: spec.update(submissionMode="Mail"), "Mail"),
        (lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].update(replica=1), "replica"),
        (lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "0 is not"),
        (lambda spec: spec.pop("rayClusterSpec"), "rayClusterSpec"),
    ],
)
def test_a_wrong_manifest_is_refused(manifest, schema, change, named):
    wrong = json.loads(json.dumps(manifest))
    change(wrong["spec"])
    with pytest.raises(jsonschema.ValidationError, match=named):
        schema.validate(wrong)


def test_what_it_starts_is_the_nightly_loop_on_the_cluster_it_is_in(manifest, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "run", lambda *given, **options: seen.append((given, options)) or {})
    command, *rest = manifest["spec"]["entrypoint"].split()
    result = CliRunner().invoke(app.app, rest)
    assert command == "setrec"
    assert result.exit_code == 0, result.output
    (((config, root, overrides), _),) = seen
    assert overrides == ["cluster.address=auto"]
    for template in templates(manifest):
        (container,) = template["spec"]["containers"]
        assert all(str(path).startswith(container["volumeMounts"][0]["mountPath"]) for path in (config, root))


def test_ray_is_everywhere_the_version_that_the_tests_ran_with(manifest):
    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    assert f"ray=={version('ray')}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_runtime_environment_is_the_project_with_every_version_pinned_and_no_development_tool(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = RuntimeEnv(**yaml.safe_load((ROOT / "deploy" / "runtime_env.yaml").read_text()))
    here = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"  # the folder of the project
    assert found.pip_config()["packages"] == [f"-c {here}/constraints.txt", f"{here}[all]"]
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={version('ray')}" in pinned
    assert all("==" in line for line in pinned if not line.startswith("#"))


def test_the_cron_job_creates_the_rayjob_and_is_what_kubernetes_takes():
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "cronjob.yaml").read_text()))
    newest = kubernetes_validate.latest_version()
    for document in documents:
        assert kubernetes_validate.validate(document, newest, strict=True)
    assert [d["kind"] for d in documents] == ["ServiceAccount", "Role", "RoleBinding", "CronJob"]


def test_a_model_that_is_held_back_is_no_failure_of_the_rayjob(manifest):
    assert "--held-back-code 0" in manifest["spec"]["entrypoint"]


def test_the_image_holds_every_package_and_no_development_tool():
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY") and len(line.split()) == 3}
    assert copied == {"setrec", "nodetok", "serving", "pipelines"}
    assert "RUN pip install -c constraints.txt '.[all]'" in lines
