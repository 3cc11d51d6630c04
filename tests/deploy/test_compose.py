"""The real Compose's interpretation of compose.yaml and cpu.yaml. test_stack.py runs them."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import DEPLOY, Compose, env_example
from tests.project import PROJECT

LASTING = {"server", "prometheus", "grafana"}
OF_COMPOSE = {"COMPOSE_FILE"}


def read(compose: Compose, cpu: bool = False, /, **settings: str) -> dict[str, Any]:
    done = compose(cpu, **settings)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "Compose warns where a variable has no value."
    configured: dict[str, Any] = yaml.safe_load(done.stdout)
    return configured


@pytest.fixture(params=[False, True], ids=["gpu", "cpu"])
def cpu(request: pytest.FixtureRequest) -> bool:
    form: bool = request.param
    return form


def test_all_settings_are_optional(compose: Compose, cpu: bool) -> None:
    services = read(compose, cpu)["services"]
    assert set(services) == {"setup"} | LASTING
    name = "cpu" if cpu else "cuda"
    for service in ("setup", "server"):
        assert services[service]["image"] == f"prismoe:{PROJECT['version']}-{name}"
        assert services[service]["build"]["dockerfile"] == f"deploy/Dockerfile.{name}"
    assert services["server"].get("gpus") == (None if cpu else [{"driver": "nvidia", "count": 1}])
    ranks = [] if cpu else ["--tensor-parallel-size", "1"]
    assert services["server"]["command"] == ["serve", "--api-keys-file", "/run/prismoe/api_keys", *ranks]


def test_a_server_has_more_time_to_end_than_its_requests(compose: Compose) -> None:
    """Requests have 30 s, `--shutdown-timeout`."""
    assert read(compose)["services"]["server"]["stop_grace_period"] == "1m0s"


def test_the_example_shows_the_defaults(compose: Compose) -> None:
    own = {
        name: text
        for name, text in env_example().items()
        if name not in {"MODEL", "OPTIONS", "HF_TOKEN_FILE"}
    }
    plain = read(compose)
    assert read(compose, **own | {"COMPOSE_FILE": "compose.yaml"}) == plain


def test_every_variable_of_the_files_is_in_the_example() -> None:
    files = ("compose.yaml", "cpu.yaml", "alertmanager.yaml")
    text = "".join((DEPLOY / file).read_text() for file in files)
    assert set(re.findall(r"\$\{(\w+)", text)) == set(env_example()) - OF_COMPOSE


def test_every_variable_has_a_value_without_the_example() -> None:
    text = (DEPLOY / "compose.yaml").read_text() + (DEPLOY / "cpu.yaml").read_text()
    assert not re.findall(r"\$\{\w+(?!:-)\W", text)


def test_the_command_line_has_the_settings(compose: Compose) -> None:
    options = """--routing '{"policy": "ltdr", "tail_experts": 3}' --max-model-len 2048"""
    server = read(compose, MODEL="owner/some-model", GPUS="2", OPTIONS=options)["services"]["server"]
    assert server["command"] == [
        *("serve", "owner/some-model", "--api-keys-file", "/run/prismoe/api_keys"),
        *("--tensor-parallel-size", "2", "--routing", '{"policy": "ltdr", "tail_experts": 3}'),
        *("--max-model-len", "2048"),
    ]
    assert server["gpus"] == [{"driver": "nvidia", "count": 2}]


def test_the_other_settings_reach_their_services(compose: Compose) -> None:
    ports = {"server": "80", "prometheus": "81", "grafana": "82"}
    numbers = {f"{name.upper()}_PORT": port for name, port in ports.items()}
    paths = {"CHECKPOINTS": "/data/models", "HF_TOKEN_FILE": "/data/token"}
    configured = read(compose, MEMORY="5g", IP_ADDRESS="192.0.2.7", RETENTION="1w", **paths, **numbers)
    services = configured["services"]
    assert {name: services[name]["ports"][0]["published"] for name in ports} == ports
    addresses = {name: services[name]["ports"][0]["host_ip"] for name in ports}
    assert addresses == {"server": "192.0.2.7", "prometheus": "127.0.0.1", "grafana": "127.0.0.1"}
    assert services["server"]["deploy"]["resources"]["limits"]["memory"] == str(5 * 2**30)
    assert "--storage.tsdb.retention.time=1w" in services["prometheus"]["command"]
    assert configured["secrets"]["hf_token"]["file"] == "/data/token"
    for name in ("setup", "server"):
        assert [v["source"] for v in services[name]["volumes"] if v["target"] == "/checkpoints"] == [
            "/data/models"
        ]


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"GPUS": "many"}, r"'services\[server\]\.gpus\[0\]\.count' invalid value \"many\""),
        ({"MEMORY": "lots"}, r"limits\.memory' invalid size: 'lots'"),
        ({"IP_ADDRESS": "here"}, r"services\.server\.ports.* invalid ip address: here"),
    ],
)
def test_compose_reports_a_wrong_setting(compose: Compose, setting: dict[str, str], complaint: str) -> None:
    """setup.sh or Docker refuses the others: see test_setup.py."""
    done = compose(**setting)
    assert done.returncode != 0
    assert re.search(complaint, done.stderr), done.stderr


def test_a_file_of_environment_variables_reaches_only_the_server(compose: Compose, cpu: bool) -> None:
    before = read(compose, cpu)["services"]
    after = read(compose, cpu, server_env="VLLM_USE_V2_MODEL_RUNNER=0\nHF_HUB_OFFLINE=1\n")["services"]
    own = {"VLLM_USE_V2_MODEL_RUNNER": "0", "HF_HUB_OFFLINE": "1"}
    assert after["server"]["environment"] == before["server"]["environment"] | own
    assert all(after[name] == before[name] for name in before if name != "server")


def test_containers_are_confined(compose: Compose, cpu: bool) -> None:
    for name, service in read(compose, cpu)["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "memory" in service["deploy"]["resources"]["limits"], name
        assert service.get("privileged") is None
        if name == "setup":
            assert (service["restart"], service["network_mode"]) == ("no", "none")
        else:
            assert service["restart"] == "unless-stopped", name
            assert service["ports"][0]["host_ip"] == "127.0.0.1", name
            assert "user" not in service, name  # The images' own users, which are not root.
            assert service["depends_on"]["setup"]["condition"] == "service_completed_successfully"


def test_each_service_sees_only_its_own_secrets(compose: Compose, cpu: bool) -> None:
    """setup is the exception, because it makes them."""
    configured = read(compose, cpu)
    seen = {
        name: {
            volume["source"]
            for volume in configured["services"][name]["volumes"]
            if volume["type"] == "volume"
        }
        for name in LASTING
    }
    assert seen == {
        "server": {"home", "server-keys"},
        "prometheus": {"prometheus", "prometheus-key"},
        "grafana": {"grafana", "grafana-password"},
    }
    assert configured["secrets"]["hf_token"]["file"] == "/dev/null"
    assert [name for name, service in configured["services"].items() if "secrets" in service] == ["server"]


def test_images_are_pinned(compose: Compose, cpu: bool) -> None:
    for service in read(compose, cpu)["services"].values():
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), service["image"]


def test_a_missing_folder_of_checkpoints_is_not_created(compose: Compose, cpu: bool) -> None:
    services = read(compose, cpu, CHECKPOINTS="/mistyped")["services"]
    for name in ("setup", "server"):
        (mount,) = (each for each in services[name]["volumes"] if each["target"] == "/checkpoints")
        assert mount["source"] == "/mistyped"
        assert mount["bind"] == {"create_host_path": False}


def test_grafana_opens_on_the_experts(compose: Compose) -> None:
    grafana = read(compose)["services"]["grafana"]
    assert (
        grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        == "/etc/grafana/dashboards/experts.json"
    )
    assert (DEPLOY / "grafana/dashboards/experts.json").is_file()


def test_mounted_files_are_in_the_repository() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    mounted = re.findall(r"source: (\./\S+),", text)
    assert len(mounted) == 5
    assert all((DEPLOY / source).exists() for source in mounted)
    assert (DEPLOY / "checkpoints").is_dir(), "The default of CHECKPOINTS."


def read_with_alertmanager(compose: Compose, cpu: bool = False) -> dict[str, Any]:
    done = compose(cpu, alerts=True, ALERT_WEBHOOK_FILE="/data/webhook")
    assert (done.returncode, done.stderr) == (0, "")
    configured: dict[str, Any] = yaml.safe_load(done.stdout)
    return configured


def test_alertmanager_only_changes_prometheus_volumes(compose: Compose, cpu: bool) -> None:
    before = read(compose, cpu)["services"]
    after = read_with_alertmanager(compose, cpu)["services"]
    alertmanager = after.pop("alertmanager")
    added = after["prometheus"]["volumes"].pop()
    assert after == before
    assert added["target"] == "/etc/alertmanagers" and added["read_only"]
    prometheus = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())
    assert prometheus["alerting"] == {
        "alertmanagers": [{"file_sd_configs": [{"files": [f"{added['target']}/targets.yaml"]}]}]
    }
    [group] = yaml.safe_load((DEPLOY / "alertmanager/targets.yaml").read_text())
    assert group == {"targets": [f"alertmanager:{alertmanager['ports'][0]['target']}"]}


def test_alertmanager_is_confined_like_prometheus(compose: Compose) -> None:
    services = read_with_alertmanager(compose)["services"]
    alertmanager, prometheus = services["alertmanager"], services["prometheus"]
    for name in ("read_only", "cap_drop", "security_opt", "logging", "restart", "depends_on"):
        assert alertmanager[name] == prometheus[name], name
    assert alertmanager["ports"][0]["host_ip"] == "127.0.0.1"
    assert "memory" in alertmanager["deploy"]["resources"]["limits"]
    assert re.search(r":v\d+\.\d+\.\d+$", alertmanager["image"])


def test_only_alertmanager_sees_the_webhook(compose: Compose) -> None:
    configured = read_with_alertmanager(compose)
    assert configured["secrets"]["alert_webhook"]["file"] == "/data/webhook"
    holders = [
        name
        for name, service in configured["services"].items()
        if any(secret["source"] == "alert_webhook" for secret in service.get("secrets", []))
    ]
    assert holders == ["alertmanager"]
    settings = yaml.safe_load((DEPLOY / "alertmanager/alertmanager.yaml").read_text())
    [receiver] = settings["receivers"]
    assert settings["route"]["receiver"] == receiver["name"]
    assert [hook["url_file"] for hook in receiver["webhook_configs"]] == ["/run/secrets/alert_webhook"]


def test_alertmanager_without_a_webhook_is_refused_with_a_message(compose: Compose) -> None:
    done = compose(alerts=True)
    assert done.returncode != 0
    assert "write the URL of the webhook for alerts into a file" in done.stderr
