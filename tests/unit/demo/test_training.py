"""Training, for a few steps: the loss falls, the same seed gives the same weights, and files can be read again."""

from itertools import islice
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from serve_app.demo.batches import drills
from serve_app.demo.examples import read_corpus
from serve_app.demo.folder import digest, read_model, write_model
from serve_app.demo.llama import Llama, Shape
from serve_app.demo.train import Recipe, Trainer, prepare


def train(steps: int, threads: int = 2) -> tuple[list[float], Llama]:
    recipe = Recipe(steps, 2048)
    tokenizer, source = prepare(read_corpus(), recipe)
    shape = Shape(tokenizer.get_vocab_size(), hidden=64, layers=2, heads=2, mlp=128, head_dim=32)
    trainer = Trainer(recipe, shape, threads)
    return list(trainer.losses(source)), trainer.model


def test_twenty_steps_lower_the_loss_and_can_be_repeated() -> None:
    losses, model = train(20)
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    again, other = train(20)
    assert again == losses
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_threads_change_no_more_than_rounding() -> None:
    (one, _), (three, _) = train(2, threads=1), train(2, threads=3)
    assert torch.allclose(torch.tensor(one), torch.tensor(three), rtol=1e-2)


def test_a_written_model_is_read_as_it_was(tmp_path: Path) -> None:
    tokenizer, _ = prepare(read_corpus(), Recipe(1, 2048))
    torch.manual_seed(1)
    model = Llama(Shape(tokenizer.get_vocab_size(), hidden=64, layers=1, heads=2, mlp=128, head_dim=32))
    write_model(tmp_path, model, tokenizer)
    read, reader = read_model(tmp_path)
    for (name, written), again in zip(model.named_parameters(), read.parameters(), strict=True):
        assert torch.equal(written.bfloat16().float(), again), name
    assert reader.to_str() == tokenizer.to_str()
    before = digest(tmp_path)
    write_model(tmp_path, model, tokenizer)
    assert digest(tmp_path) == before


def test_a_drill_trains_the_copy_of_a_span() -> None:
    for batch in islice(drills(3072, 512, 1), 20):
        length = batch.ids.shape[1]
        rows, columns = batch.places // length, batch.places % length
        assert torch.equal(batch.ids[rows, columns + 1], batch.targets)
        span = len(batch.places) // len(batch.ids) + 1
        assert torch.equal(batch.ids[:, :span], batch.ids[:, -span:])
        assert batch.ids.numel() <= 512


def test_two_heads_begin_by_looking_one_and_two_tokens_back(tmp_path: Path) -> None:
    tokenizer, _ = prepare(read_corpus(), Recipe(1, 2048))
    torch.manual_seed(1)
    write_model(tmp_path, Llama(Shape(tokenizer.get_vocab_size(), layers=1)), tokenizer)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    (weights,) = model(torch.randint(1000, (1, 24)), output_attentions=True).attentions
    for head, back in ((0, 1), (1, 2)):
        assert weights[0, head].diagonal(-back).mean() > 0.4
        assert weights[0, 3].diagonal(-back).mean() < 0.2


def test_a_training_that_was_cut_off_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    recipe = Recipe(6, 2048, drilled=0.5)
    tokenizer, source = prepare(read_corpus(), recipe)
    shape = Shape(tokenizer.get_vocab_size(), hidden=64, layers=1, heads=2, mlp=128, head_dim=32)
    whole = list(Trainer(recipe, shape, 2).losses(source))
    first = Trainer(recipe, shape, 2)
    begun = list(islice(first.losses(prepare(read_corpus(), recipe)[1]), 4))
    first.save(tmp_path / "state")
    second = Trainer(recipe, shape, 2)
    second.load(tmp_path / "state")
    assert begun + list(second.losses(prepare(read_corpus(), recipe)[1])) == whole
