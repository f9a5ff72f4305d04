import pytest

from psgd_lm.models import MODELS, build_model, model_config_from_dict
from psgd_optim.tools.run_folder import config_to_dict


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_built_and_read_back_by_its_name(name):
    config = MODELS[name]
    assert config.name == name
    model = build_model(config, 11)
    assert (model.vocab_size, model.context) == (11, config.context)
    assert model_config_from_dict({"name": name, **config_to_dict(config)}) == config
