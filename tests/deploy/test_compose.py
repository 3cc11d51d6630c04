"""compose.yaml as the real Compose reads it. No container is started: that needs a Docker engine."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import DEPLOY, Compose, env_example
from tests.deploy.dockerfile import stages

OPTIONAL_PROFILE = "COMPOSE_PROFILES"  # Compose's own; without it, Prometheus and Grafana start alone.
SETTINGS = [name for name in env_example() if name != OPTIONAL_PROFILE]
MAY_BE_EMPTY = {"OPTIONS"}


def read(compose: Compose, **changes: str | None) -> dict[str, Any]:
    done = compose(changes)
    assert done.returncode == 0, done.stderr
    configured: dict[str, Any] = yaml.safe_load(done.stdout)
    return configured


def test_each_profile_starts_one_server_beside_prometheus_and_grafana(compose: Compose) -> None:
    for profile in ("gpu", "cpu"):
        services = read(compose, COMPOSE_PROFILES=profile)["services"]
        assert set(services) == {profile, "prometheus", "grafana"}
        assert services[profile]["networks"]["default"]["aliases"] == ["server"]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_a_missing_setting_stops_the_start_with_its_name(compose: Compose, name: str, profile: str) -> None:
    done = compose({name: None, OPTIONAL_PROFILE: profile})
    assert done.returncode != 0
    assert f"required variable {name} is missing a value: Say in .env" in done.stderr


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - MAY_BE_EMPTY))
def test_an_empty_setting_stops_the_start_with_its_name(compose: Compose, name: str) -> None:
    done = compose({name: ""})
    assert done.returncode != 0
    assert f"required variable {name} is missing a value" in done.stderr


def test_every_variable_of_the_file_is_a_setting_of_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    assert used == set(SETTINGS)


def test_every_setting_is_explained() -> None:
    explained = False
    for line in (DEPLOY / ".env.example").read_text().splitlines():
        explained = line.startswith("#") or (explained and bool(line))
        assert explained or not line, f"No comment stands above {line}."


def test_the_command_line_takes_the_settings(compose: Compose) -> None:
    options = """--routing '{"policy": "ltdr", "tail_experts": 3}' --max-model-len 2048"""
    services = read(compose, MODEL="some-model", GPUS="2", OPTIONS=options)["services"]
    assert services["gpu"]["command"] == [
        *("serve", "/checkpoints/some-model", "--served-model-name", "some-model"),
        *("--tensor-parallel-size", "2", "--api-keys-file", "/run/secrets/api_keys"),
        *("--routing", '{"policy": "ltdr", "tail_experts": 3}'),
        *("--max-model-len", "2048"),
    ]
    reserved = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert reserved == [{"capabilities": ["gpu"], "driver": "nvidia", "count": 2}]


def test_a_gpu_can_do_without_prismoes_kernels(compose: Compose) -> None:
    server = read(compose, PLAIN_KERNELS="1")["services"]["gpu"]
    assert server["environment"] == {"PRISMOE_PLAIN_KERNELS": "1"}


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_containers_are_confined(compose: Compose, profile: str) -> None:
    for name, service in read(compose, COMPOSE_PROFILES=profile)["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert service["ports"][0]["host_ip"] == "127.0.0.1", name
        assert service.get("privileged") is None
        assert "user" not in service, name  # The images' own, which are not root.


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_every_service_has_a_health_check(compose: Compose, profile: str) -> None:
    services = read(compose, COMPOSE_PROFILES=profile)["services"]
    assert "check" in services["prometheus"]["healthcheck"]["test"]
    assert "http://127.0.0.1:3000/api/health" in services["grafana"]["healthcheck"]["test"]
    dockerfile = stages(DEPLOY.parent / services[profile]["build"]["dockerfile"])[-1]
    assert "http://127.0.0.1:8000/readyz" in dockerfile.last("HEALTHCHECK")


def test_images_are_pinned(compose: Compose) -> None:
    for service in read(compose)["services"].values():
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), service["image"]


def test_secrets_come_from_files(compose: Compose) -> None:
    files = {
        "API_KEYS_FILE": "/etc/prismoe/keys",
        "METRICS_KEY_FILE": "/etc/prismoe/metrics",
        "GRAFANA_PASSWORD_FILE": "/etc/prismoe/password",
    }
    configured = read(compose, **files)
    assert {name: secret["file"] for name, secret in configured["secrets"].items()} == {
        "api_keys": "/etc/prismoe/keys",
        "metrics_key": "/etc/prismoe/metrics",
        "grafana_password": "/etc/prismoe/password",
    }
    secrets = {name: service.get("secrets") for name, service in configured["services"].items()}
    assert [secret["target"] for secret in secrets["gpu"]] == ["/run/secrets/api_keys"]
    assert [secret["target"] for secret in secrets["prometheus"]] == ["/run/secrets/metrics_key"]


def test_mounted_folders_are_in_the_repository(compose: Compose) -> None:
    services = read(compose)["services"]
    mounted = {
        volume["target"]: volume["source"]
        for name in ("prometheus", "grafana")
        for volume in services[name]["volumes"]
        if volume["type"] == "bind"
    }
    assert mounted == {
        "/etc/prometheus": str(DEPLOY / "prometheus"),
        "/etc/grafana/provisioning": str(DEPLOY / "grafana/provisioning"),
        "/etc/grafana/dashboards": str(DEPLOY / "grafana/dashboards"),
    }
    assert all(DEPLOY.parent.joinpath(source).is_dir() for source in mounted.values())
