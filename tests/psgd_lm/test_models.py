import pytest

from psgd_lm.gpt import GPTConfig
from psgd_lm.models import MODELS, build_model, model_config_from_dict
from psgd_optim.tools.run_folder import config_to_dict
from psgd_optim.types import InputError


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_built_and_read_back_by_its_name(name):
    config = MODELS[name]
    assert config.name == name
    model = build_model(config, 11)
    assert (model.vocab_size, model.context) == (11, config.context)
    assert model_config_from_dict({"name": name, **config_to_dict(config)}) == config


def test_runs_that_do_not_name_their_model_have_a_gpt():
    assert model_config_from_dict({"layers": 2}) == GPTConfig(layers=2)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"name": "gtp"}, "There is no model 'gtp'; .*gpt"),
        ({"name": "lstm", "layer": 2}, "The model lstm has no setting 'layer'; .*layers"),
    ],
)
def test_what_is_not_known_is_refused_with_the_closest(saved, message):
    with pytest.raises(InputError, match=message):
        model_config_from_dict(saved)
