"""`payments.models` exports exactly the models that its files define."""

from django.apps import apps

from payments import models


def test_models_package_exports_exactly_the_models_of_its_files() -> None:
    defined = {model.__name__ for model in apps.get_app_config("payments").get_models()}
    assert sorted(models.__all__) == sorted(defined)
    for model in apps.get_app_config("payments").get_models():
        assert getattr(models, model.__name__) is model
        assert model.__module__.startswith("payments.models.")
