"""The Serve configuration file of a machine and of a cluster, and the KubeRay manifest."""

import json
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray._common.utils import import_attr
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.jobs import serve as serving_command
from pipelines.jobs.serve import application
from pipelines.jobs.serve_file import IMPORT_PATH, read_serve_file, settings_of
from serving.api.access.tokens import Tokens
from serving.deployment import ingress
from setrec.errors import ConfigError

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def file(tmp_path):
    """The file we ship, as text that a test may change."""

    def write(change=None):
        raw = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
        if change is not None:
            change(raw)
        path = tmp_path / "serve.yaml"
        path.write_text(yaml.safe_dump(raw))
        return path

    return write


def test_the_file_we_ship_is_what_ray_takes_and_what_the_command_takes(file):
    (found,) = ServeDeploySchema.model_validate(yaml.safe_load(file().read_text())).applications
    assert (found.import_path, found.route_prefix) == (IMPORT_PATH, "/")
    assert import_attr(IMPORT_PATH) is application
    bundle, settings = read_serve_file(file(), {})
    assert (str(bundle), settings.host, settings.port) == ("/srv/setrec/bundle", "0.0.0.0", 8000)
    assert (settings.replicas, settings.max_replicas, settings.max_batch_size, settings.threads) == (1, 2, 32, 1)
    assert settings.auth == "tokens"


def test_on_a_cluster_the_same_arguments_make_the_same_deployment(file):
    raw = yaml.safe_load(file().read_text())
    deployment = application(raw["applications"][0]["args"])._bound_deployment
    scale = deployment._deployment_config.autoscaling_config
    assert (scale.min_replicas, scale.max_replicas) == (1, 2)
    assert scale.target_ongoing_requests == 32
    assert deployment._deployment_config.backpressure_config.retry_after_s == 1
    assert deployment.ray_actor_options["num_cpus"] == 1


def test_the_command_line_wins_over_the_file(file, monkeypatch):
    seen = []
    monkeypatch.setattr(serving_command, "serve_until_interrupted", lambda *given: seen.append(given))
    options = ["--host", "127.0.0.1", "--port", "9000", "--bundle", "/other", "--no-auth", "--store", "x.db"]
    result = CliRunner().invoke(app.app, ["serve", "--config", str(file()), *options])
    assert result.exit_code == 0, result.output
    ((bundle, settings),) = seen
    assert (str(bundle), settings.host, settings.port, settings.auth) == ("/other", "127.0.0.1", 9000, "off")
    assert (settings.store, settings.max_replicas) == ("x.db", 2)


def args(raw):
    return raw["applications"][0]["args"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: args(raw).update(surprise=1), "surprise"),
        (lambda raw: args(raw).update(auth="off"), "loopback"),
        (lambda raw: args(raw).update(max_replicas=0), "max_replicas"),
        (lambda raw: args(raw).pop("bundle"), "bundle"),
        (lambda raw: raw["applications"][0].update(import_path="other:app"), "pipelines.jobs.serve:application"),
        (lambda raw: raw["applications"][0].update(deployments=[{"name": "recommend"}]), "deployments"),
        (lambda raw: raw.update(aplications=[]), "aplications"),
        (lambda raw: raw["http_options"].update(request_timeout_s=3), "request_timeout_s"),
        (lambda raw: raw.update(applications=[]), "applications"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(file, change, said):
    with pytest.raises(ConfigError, match=r"serve\.yaml: ") as error:
        read_serve_file(file(change), {})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_authentication_cannot_be_switched_off_on_a_cluster(file):
    raw = yaml.safe_load(file().read_text())
    with pytest.raises(ConfigError, match="loopback"):
        application({**args(raw), "auth": "off"})


def test_a_token_from_the_command_line_is_known_to_the_endpoint(tmp_path):
    file = tmp_path / "tokens.json"
    made = CliRunner().invoke(app.app, ["token", "shop", "--scope", "read", "--scope", "write", "--file", str(file)])
    assert made.exit_code == 0, made.output
    caller = Tokens(file).caller(made.output.strip())
    assert (caller.name, caller.scopes) == ("shop", {"read", "write"})


@pytest.fixture(scope="module")
def manifest():
    return yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())


def templates(manifest):
    cluster = manifest["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def pod(template):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}


def test_the_manifest_is_a_rayservice_and_its_pods_are_what_kubernetes_takes(manifest):
    schema = json.loads((Path(__file__).parent / "rayservice.schema.json").read_text())
    jsonschema.validate(manifest, schema)
    version = kubernetes_validate.latest_version()
    for template in templates(manifest):
        assert kubernetes_validate.validate(pod(template), version, strict=True)
    wrong = json.loads(json.dumps(manifest))
    wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(wrong, schema)
    wrong = json.loads(json.dumps(templates(manifest)[0]))
    wrong["spec"]["containers"][0]["imag"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="imag"):
        kubernetes_validate.validate(pod(wrong), version, strict=True)


def test_the_manifests_serve_configuration_is_one_that_the_command_takes_too(manifest, tmp_path):
    (tmp_path / "serve.yaml").write_text(manifest["spec"]["serveConfigV2"])
    _, settings = read_serve_file(tmp_path / "serve.yaml", {})
    assert settings.auth == "tokens"
    assert settings.store.startswith("redis://")


def test_every_container_sets_what_a_single_machine_sets_by_itself(manifest):
    _, settings = application_settings(manifest)
    for template in templates(manifest):
        given = {entry["name"]: entry.get("value") for entry in template["spec"]["containers"][0]["env"]}
        assert {name: given.get(name) for name in ingress.FLAGS} == ingress.FLAGS
        assert given[ingress.MAX_IN_FLIGHT] == str(settings.max_in_flight)
        assert given[ingress.RETRY_AFTER] == str(settings.retry_after_seconds)
        assert Path(given["RAY_SERVE_HAPROXY_BINARY_PATH"]).name == ingress.COMMAND


def application_settings(manifest):
    return settings_of(args(yaml.safe_load(manifest["spec"]["serveConfigV2"])), "the manifest")
