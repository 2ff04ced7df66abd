"""The files of a newcomer's first steps: `.env.example` and the compose files agree."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / ".env.example"
SECRETS = (
    "DJANGO_SECRET_KEY",
    "CALLBACK_TOKEN_KEY",
    "POSTGRES_PASSWORD",
    "POSTGRES_APP_PASSWORD",
    "REDIS_PASSWORD",
    "FLOWER_PASSWORD",
)


def test_example_pays_through_the_local_simulator() -> None:
    example = dotenv_values(EXAMPLE)

    assert example["MPESA_BASE_URL"] == "http://127.0.0.1:8099"
    assert example["MPESA_CALLBACK_URL"] == "http://127.0.0.1:8000/api/payments/b2c-callback/"
    assert example["MPESA_PRODUCTION"] == "False"


def test_command_in_the_example_makes_the_secrets_of_compose(tmp_path: Path) -> None:
    (line,) = (line for line in EXAMPLE.read_text().splitlines() if "token_urlsafe" in line)
    command = line.removeprefix("#").strip().replace("python3", sys.executable, 1)

    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True)

    made = dotenv_values(tmp_path / ".env")
    assert tuple(made) == SECRETS
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{64}", str(secret)) for secret in made.values())


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.override.yml", "docker-compose.workers.yml"])
def test_each_variable_of_a_compose_file_is_in_the_example(name: str) -> None:
    variables = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / name).read_text()))

    assert {variable for variable in variables if f"{variable}=" not in EXAMPLE.read_text()} == set()


def test_only_migrate_knows_the_owners_password_in_compose() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("web", "callbacks", "worker", "beat"):
        assert "DATABASE_OWNER_URL" not in compose[name]["environment"]
        assert compose[name]["environment"]["POSTGRES_PASSWORD"] == ""
        assert compose[name]["environment"]["DATABASE_URL"].startswith("postgresql://kasoko_app:")
    assert compose["migrate"]["environment"]["DATABASE_OWNER_URL"].startswith("postgresql://kasoko:")
    assert "--requirepass" in compose["redis"]["command"]


def test_override_gives_every_program_the_simulator() -> None:
    compose, override = ((ROOT / name).read_text() for name in ("docker-compose.yml", "docker-compose.override.yml"))
    programs = set(re.findall(r"^  (\w+):(?: &\w+)?\n    <<: \*project$", compose, re.MULTILINE))
    programs |= set(re.findall(r"^  (\w+): \*web$", compose, re.MULTILINE))

    assert programs == {"migrate", "web", "callbacks", "worker", "beat"}
    assert set(re.findall(r"^  (\w+): \*simulated$", override, re.MULTILINE)) == programs
    (address,) = re.findall(r"MPESA_BASE_URL: (\S+)", override)
    assert urlsplit(address).hostname == "simulator"
    assert f"--port {urlsplit(address).port} " in override
