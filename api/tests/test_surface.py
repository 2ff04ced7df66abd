"""Tests of the outer surface: tasks, URLs, settings and Celery options equal the recorded ones.

Workers, the guide, `.env` files and bookmarks depend on the names in `surface.json`. The file was generated from commit
f80a91f, before modules moved between packages. A change to it is a change for users and belongs in CHANGELOG.md.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from django.apps import apps
from django.urls import URLPattern, URLResolver, get_resolver

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = json.loads((Path(__file__).parent / "surface.json").read_text(encoding="utf-8"))
READERS = {"text", "flag", "whole", "decimal", "one_of", "words", "networks", "stages", "postgres_url"}
READERS |= {"minutes_by_pool_size", "redis_url", "addresses", "public_url", "mail_server"}
# URLs added on purpose since that commit. The page in-doubt replaces admin:limbo, which redirects for one version.
URLS_SINCE = ["admin:in_doubt admin/in-doubt/"]
MODEL_PAGES = ("changelist", "add", "history", "delete", "change")


def printed_by_fresh_process(code: str) -> Any:
    """Return the JSON that `code` prints in a process without our variables and without an `.env` file."""
    ours = {*EXPECTED["settings"], "DJANGO_SETTINGS_MODULE"}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    # Nothing answers at these addresses: neither reading the settings nor importing the tasks connects.
    servers = {"DATABASE_URL": "postgres://127.0.0.1:1/kasoko", "CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=inherited | servers | {"KASOKO_ENV_FILE": os.devnull},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def url_patterns(resolver: URLResolver, path: str = "", namespace: str = "") -> list[tuple[str, str]]:
    """Return each URL as its qualified name and its whole pattern, in the resolver's order."""
    pairs = []
    for entry in resolver.url_patterns:
        below = path + str(entry.pattern)
        if isinstance(entry, URLPattern):
            pairs.append((f"{namespace}{entry.name or ''}", below))
        else:
            pairs += url_patterns(entry, below, f"{namespace}{entry.namespace}:" if entry.namespace else namespace)
    return pairs


def outer_urls() -> tuple[list[str], list[str]]:
    """Return the lines "name path" of all URLs but Django's pages of models, and the models that have such pages."""
    names = {
        f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}": model._meta.label_lower
        for model in apps.get_models()
        for page in MODEL_PAGES
    }
    pairs = url_patterns(get_resolver())
    models = {names[name] for name, _ in pairs if name in names}
    # After each change page comes its old address, which has no name; Django redirects it.
    others = [f"{name} {path}" for name, path in pairs if name not in names and not path.endswith("<path:object_id>/")]
    # The pattern of app_list repeats the app labels of these models.
    others = [re.sub(r"\(\?P<app_label>[^)]*\)", "<app_label>", line) for line in others]
    return sorted(others), sorted(models)


def settings_from_environment() -> dict[str, str | None]:
    """Return the names that `api/settings.py` reads from the environment, each with its default as it is written."""
    defaults: dict[str, str | None] = {}
    for node in ast.walk(ast.parse((ROOT / "api" / "settings.py").read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        reader = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        is_environ = ast.unparse(node.func) == "os.environ.get"
        if (reader in READERS or is_environ) and node.args and isinstance(node.args[0], ast.Constant):
            default = ast.unparse(node.args[1]) if len(node.args) > 1 else None
            name = str(node.args[0].value)
            defaults[name] = default or defaults.get(name)
    return dict(sorted(defaults.items()))


def constant_celery_options() -> dict[str, Any]:
    """Return the CELERY_* settings whose values are literals."""
    options = {}
    for node in ast.parse((ROOT / "api" / "settings.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if names[0].startswith("CELERY_"):
                try:
                    options.update(dict.fromkeys(names, ast.literal_eval(node.value)))
                except ValueError:
                    continue
    return dict(sorted(options.items()))


def test_worker_registers_pinned_tasks() -> None:
    code = (
        "import json; from api.celery import app; app.loader.import_default_modules(); "
        "print(json.dumps(sorted(name for name in app.tasks if not name.startswith('celery.'))))"
    )
    assert printed_by_fresh_process(code) == EXPECTED["tasks"]


def test_beat_schedule_is_pinned() -> None:
    """Each entry is a task, the seconds between its runs, and the seconds after which a late run is dropped."""
    code = (
        "import json; from api.celery import app; print(json.dumps(sorted("
        "[entry['task'], entry['schedule'], entry['options']['expires']] "
        "for entry in app.conf.beat_schedule.values())))"
    )
    assert printed_by_fresh_process(code) == EXPECTED["beat_schedule"]


def test_url_names_and_paths_are_pinned() -> None:
    urls, models = outer_urls()
    assert urls == sorted([*EXPECTED["urls"], *URLS_SINCE])
    assert models == EXPECTED["admin_models"]


def test_settings_read_from_environment_are_pinned() -> None:
    assert settings_from_environment() == EXPECTED["settings"]


def test_constant_celery_options_are_pinned() -> None:
    assert constant_celery_options() == EXPECTED["celery_options"]
