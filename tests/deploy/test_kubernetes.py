"""The Helm chart: Helm's lint, Kubernetes's schemas, and the types of KEDA and the Prometheus operator.

No Python package has a schema of LeaderWorkerSet: its pods are checked as pods, its few fields by hand.
"""

import json
import shlex
import subprocess
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor
from helm_python import HelmValuesError, lint
from pydantic import BaseModel

from prismoe.server.commands.arguments import serve_settings
from tests.deploy.conftest import CHART, DEPLOY, REQUIRED, render
from tests.doc_commands import documented
from tests.paths import REPOSITORY

KUBERNETES = "1.37"
OTHER_KINDS = ("LeaderWorkerSet", "PodMonitor", "ScaledObject")

CASES = {
    "one pod a replica": {},
    "a fixed number of replicas": {"replicas": {"min": 2, "max": 2}},
    "tensor parallel": {"gpus": 4, "options": ["--routing", '{"policy": "topk"}']},
    "two nodes a replica": {"nodes": 2, "gpus": 8},
    "from the Hub": {
        "model": "owner/name",
        "checkpointsClaim": "",
        "cacheClaim": "cache",
        "hubTokenSecret": "token",
    },
    "everything": {
        "nodes": 2,
        "fetchImages": True,
        "environment": {"NCCL_DEBUG": "INFO"},
        "nodeSelector": {"gpu": "h200"},
        "prometheus": {"labels": {"release": "kube-prometheus-stack"}},
        "clients": [{"namespaceSelector": {"matchLabels": {"team": "chat"}}}],
    },
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    chosen: dict[str, Any] = request.param
    return chosen


def server(manifests: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """The pod that answers requests."""
    if ("Deployment", "demo") in manifests:
        pod: dict[str, Any] = manifests["Deployment", "demo"]["spec"]["template"]
    else:
        pod = manifests["LeaderWorkerSet", "demo"]["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    return pod


def test_helm_lint(values: dict[str, Any]) -> None:
    report = lint(CHART, values=REQUIRED | values, strict=True)
    found = [message for message in report["messages"] if "icon is recommended" not in message["error"]]
    assert (found, report["errors"]) == ([], [])


def test_the_manifests_are_valid_for_kubernetes(values: dict[str, Any]) -> None:
    manifests = render(**values)
    own = [manifest for (kind, _), manifest in manifests.items() if kind not in OTHER_KINDS]
    assert len(own) >= 8
    for manifest in own:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def known_to(model: type[BaseModel], manifest: dict[str, Any]) -> bool:
    """Whether an operator's types keep a manifest unchanged. They drop unknown keys."""
    return (
        model.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest
    )


def test_the_operators_know_every_key_of_their_manifests(values: dict[str, Any]) -> None:
    manifests = render(**values)
    assert known_to(PodMonitor, manifests["PodMonitor", "demo"])
    if "replicas" in values:
        assert ("ScaledObject", "demo") not in manifests
    else:
        assert known_to(ScaledObject, manifests["ScaledObject", "demo"])


@pytest.mark.parametrize(("kind", "model"), [("PodMonitor", PodMonitor), ("ScaledObject", ScaledObject)])
def test_the_operators_types_show_a_misspelt_key(kind: str, model: type[BaseModel]) -> None:
    """Otherwise the test above could not fail."""
    manifest = render()[kind, "demo"]
    manifest["spec"]["misspelt"] = 1
    assert not known_to(model, manifest)


@pytest.mark.parametrize("nodes", [1, 2])
def test_only_keda_sets_the_number_of_replicas(nodes: int) -> None:
    manifests = render(nodes=nodes)
    target = manifests["ScaledObject", "demo"]["spec"]["scaleTargetRef"]
    scaled = manifests[target["kind"], target["name"]]
    assert scaled["apiVersion"] == target["apiVersion"]
    assert "replicas" not in scaled["spec"]


def test_several_nodes_make_a_group_of_pods() -> None:
    manifest = render(nodes=2, gpus=8)["LeaderWorkerSet", "demo"]
    assert manifest["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    group = manifest["spec"]["leaderWorkerTemplate"]
    assert set(group) == {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
    assert group["size"] == 2
    for pod in (group["leaderTemplate"], group["workerTemplate"]):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert "readinessProbe" not in group["workerTemplate"]["spec"]["containers"][0]


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (4, 1), (8, 2)])
def test_the_server_gets_the_command_line(gpus: int, nodes: int) -> None:
    options = ["--routing", '{"policy": "ltdr", "tail_experts": 3}', "--max-model-len", "2048"]
    [container] = server(render(gpus=gpus, nodes=nodes, options=options))["spec"]["containers"]
    shell = container.get("command", [])  # The image's entry point is prismoe.
    assert bool(shell) == (nodes > 1)
    assert not shell or shell[2].endswith(' && exec prismoe "$@"')
    command, model, *arguments = container["args"]
    assert (command, model) == ("serve", "/checkpoints/MoE-LLaVA-Phi2-2.7B-4e")
    settings = serve_settings(arguments)
    assert settings.routing == {"policy": "ltdr", "tail_experts": 3}
    engine = settings.engine_options
    assert engine[engine.index("--tensor-parallel-size") + 1] == str(gpus * nodes)
    assert ("ray" in engine) == (nodes > 1)


def environment(container: dict[str, Any]) -> dict[str, Any]:
    """The variables and their values. For a reference it is the reference."""
    return {entry["name"]: entry.get("value") or entry["valueFrom"] for entry in container["env"]}


def server_containers(manifests: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """The server containers of every pod of a replica."""
    pods = [server(manifests)]
    if ("LeaderWorkerSet", "demo") in manifests:
        pods.append(manifests["LeaderWorkerSet", "demo"]["spec"]["leaderWorkerTemplate"]["workerTemplate"])
    return [pod["spec"]["containers"][0] for pod in pods]


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_environment_reaches_every_pod(nodes: int) -> None:
    own = {"PRISMOE_PLAIN_KERNELS": "1", "NCCL_DEBUG": "INFO"}
    containers = server_containers(render(nodes=nodes, environment=own))
    assert len(containers) == nodes
    for container in containers:
        found = environment(container)
        assert found.pop("VLLM_HOST_IP")
        assert found == own | {"HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_model_of_the_hub(nodes: int) -> None:
    name = "LanguageBind/MoE-LLaVA-Phi2-2.7B-4e"
    manifests = render(nodes=nodes, model=name, checkpointsClaim="", cacheClaim="hub", hubTokenSecret="mine")
    for container in server_containers(manifests):
        found = environment(container)
        assert "HF_HUB_OFFLINE" not in found
        assert found["HF_TOKEN"] == {"secretKeyRef": {"name": "mine", "key": "hf_token"}}
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert "/checkpoints" not in mounted
        assert mounted["/home/vllm/.cache/huggingface"] == "cache"
    arguments = server_containers(manifests)[0]["args"]
    assert arguments[:2] == ["serve", name]
    assert serve_settings(arguments[1:]).model == name
    *_, outside = manifests["NetworkPolicy", "demo-server"]["spec"]["egress"]
    assert {"port": 443} in outside["ports"]


def test_a_variable_of_the_user_overrides_the_charts() -> None:
    [container] = server_containers(render(environment={"HF_HUB_OFFLINE": "0"}))
    assert [entry["value"] for entry in container["env"] if entry["name"] == "HF_HUB_OFFLINE"] == ["0"]


@pytest.mark.parametrize("index", [0, 1], ids=["leader", "worker"])
def test_a_pod_whose_image_has_no_ray_ends_with_a_message(index: int) -> None:
    """Its shell script runs here, where there is no Ray either."""
    container = server_containers(render(nodes=2))[index]
    command = [*container["command"], *container.get("args", [])]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=10)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "This image has no Ray, but nodes is 2: build the image with --build-arg RAY="
    )
    dockerfile = (DEPLOY / "Dockerfile.cuda").read_text()
    assert "ARG RAY=" in dockerfile


def test_probes_query_the_server() -> None:
    [container] = server(render())["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]
    for probe, path in (("startupProbe", "readyz"), ("readinessProbe", "readyz"), ("livenessProbe", "livez")):
        assert container[probe]["httpGet"] == {"path": f"/{path}", "port": "http"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 60 * 30


def test_the_server_reads_its_keys_and_prometheus_its_own() -> None:
    manifests = render()
    pod = server(manifests)["spec"]
    [container] = pod["containers"]
    settings = serve_settings(container["args"][2:])
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "api-keys"]
    [volume] = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "api-keys"]
    [item] = volume["items"]
    assert "subPath" not in mount, "A changed Secret would not reach the server."
    assert str(settings.api_keys_file) == f"{mount['mountPath']}/{item['path']}"
    [endpoint] = manifests["PodMonitor", "demo"]["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": volume["secretName"], "key": "metrics_key"}


def test_pods_are_confined(values: dict[str, Any]) -> None:
    manifests = render(**values)
    pods = [server(manifests), manifests["Deployment", "demo-router"]["spec"]["template"]]
    for pod in pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_selectors_find_the_pods(values: dict[str, Any]) -> None:
    manifests = render(**values)
    found = {
        "server": server(manifests)["metadata"]["labels"],
        "router": manifests["Deployment", "demo-router"]["spec"]["template"]["metadata"]["labels"],
    }
    for component, labels in found.items():
        budget = manifests["PodDisruptionBudget", f"demo-{component}"]["spec"]["selector"]["matchLabels"]
        assert budget.items() <= labels.items()
    monitored = manifests["PodMonitor", "demo"]["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= found["server"].items()
    assert not monitored.items() <= found["router"].items()
    assert manifests["Service", "demo"]["spec"]["selector"].items() <= found["router"].items()
    [router] = manifests["Deployment", "demo-router"]["spec"]["template"]["spec"]["containers"]
    selector = router["args"][router["args"].index("--selector") + 1 :][:2]
    assert dict(word.split("=") for word in selector).items() <= found["server"].items()


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_server_has_more_time_to_end_than_its_requests(nodes: int) -> None:
    """Requests have 30 s, `--shutdown-timeout`."""
    assert server(render(nodes=nodes))["spec"]["terminationGracePeriodSeconds"] == 60


def test_only_the_router_and_prometheus_reach_a_server() -> None:
    policy = render()["NetworkPolicy", "demo-server"]["spec"]
    [rule] = policy["ingress"]
    router, prometheus = rule["from"]
    assert router["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "router"
    assert prometheus["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    [names] = policy["egress"]
    assert {port["port"] for port in names["ports"]} == {53}


def test_a_server_that_may_fetch_images_reaches_no_private_address() -> None:
    *_, outside = render(fetchImages=True)["NetworkPolicy", "demo-server"]["spec"]["egress"]
    [block] = [peer["ipBlock"] for peer in outside["to"]]
    assert set(block["except"]) == {
        *("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16"),
    }


def test_the_pages_settings_render() -> None:
    """The client `helm` is not here: the test reads each --set as that would."""
    [command] = documented("helm install")
    _, _, _, chart, *options = shlex.split(command)
    assert REPOSITORY / chart == CHART and set(options[::2]) == {"--set"}
    values = dict(option.split("=") for option in options[1::2])
    assert values.keys() >= REQUIRED.keys()
    assert ("Deployment", "demo") in render(**values)


@pytest.mark.parametrize("name", ["image", "model", "apiKeySecret"])
def test_a_missing_setting_stops_helm_with_its_name(name: str) -> None:
    with pytest.raises(HelmValuesError, match=f"at '/{name}': minLength"):
        render(**{name: ""})


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"modle": "x"}, "'modle' not allowed"),
        ({"router": {"polcy": "random"}}, "'polcy' not allowed"),
        ({"router": {"policy": "fastest"}}, "at '/router/policy'"),
        ({"gpus": 0}, "at '/gpus'"),
        ({"model": "/absolute"}, "at '/model'"),
        ({"model": "two words"}, "at '/model'"),
        ({"checkpointsClaim": "", "model": "a-folder"}, "at '/model'"),
        ({"environment": {"A-B": "1"}}, "invalid propertyName 'A-B'"),
        ({"environment": {"A": 1}}, "at '/environment/A'"),
        ({"options": "--max-model-len 2048"}, "at '/options'"),
    ],
)
def test_a_wrong_setting_stops_helm_with_its_name(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HelmValuesError, match=complaint):
        render(**values)


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads((CHART / "values.schema.json").read_text()))
