"""One quick question to the hub, where loading itself would retry for half a minute."""

from huggingface_hub import dataset_info, model_info

TIMEOUT = 10  # seconds


def ask_for_model(name: str) -> None:
    """OSError unless the hub answers, and has the model."""
    _ask(model_info, name)


def ask_for_dataset(name: str, revision: str) -> None:
    """OSError unless the hub answers, and has the data set at that commit."""
    _ask(dataset_info, name, revision=revision)


def _ask(question, name: str, **options) -> None:
    try:
        question(name, timeout=TIMEOUT, **options)
    except Exception as error:  # whatever the network library of the day raises
        raise OSError(f"the hub did not say that it has {name!r}") from error
