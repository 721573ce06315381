"""Signals are heeded between micro-batches; what they interrupt is taken again."""

import gc
import multiprocessing
import os
import signal

import pytest

from tests.test_training import equal, train
from trainer.checkpoint import load_file
from trainer.losses import language_model_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sigusr1_saves_at_once_and_training_goes_on_bit_equal(tmp_path, capsys):
    whole = train(tmp_path / "a", save_interval=100)
    seen = []

    def signalled(model, batch):
        seen.append(1)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        if len(seen) == 6:
            assert load_file(tmp_path / "b" / "pretrain_32_resume.pth")["progress"]["step"] == 2
        return language_model_loss(model, batch)

    assert equal(whole, train(tmp_path / "b", loss_fn=signalled, save_interval=100))
    assert "pretrain_32.pth at step 2, as SIGUSR1 asked; training goes on" in capsys.readouterr().out


def test_a_step_of_many_micro_batches_does_not_delay_leaving(tmp_path):
    seen = []

    def signalled(model, batch):
        seen.append(1)
        if len(seen) == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return language_model_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", loss_fn=signalled, batch_size=1, accumulation_steps=32)
    assert len(seen) == 40 and load_file(tmp_path / "b" / "pretrain_32_resume.pth")["progress"]["step"] == 1
    again = train(tmp_path / "b", batch_size=1, accumulation_steps=32)
    assert equal(train(tmp_path / "a", batch_size=1, accumulation_steps=32), again)


def test_loader_workers_survive_the_sigterm_of_their_group_and_end_with_the_run(tmp_path):
    settings = {"batch_size": 1, "accumulation_steps": 4, "num_workers": 2}
    whole, workers = train(tmp_path / "a", **settings), []

    def signalled(model, batch):
        if not workers:
            workers.extend(multiprocessing.active_children())
            for process in workers:
                os.kill(process.pid, signal.SIGTERM)
        return language_model_loss(model, batch)

    assert equal(whole, train(tmp_path / "b", loss_fn=signalled, **settings)) and len(workers) == 2
    gc.collect()
    for process in workers:
        process.join(20)
        assert not process.is_alive()


def test_stopped_before_its_first_step_a_fresh_run_leaves_the_one_before_alone(tmp_path, capsys):
    train(tmp_path, max_steps=4)
    before = (tmp_path / "pretrain_32_resume.pth").read_bytes()

    def signalled(model, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return language_model_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss_fn=signalled, fresh=True)
    assert "nothing to save yet" in capsys.readouterr().out
    assert (tmp_path / "pretrain_32_resume.pth").read_bytes() == before
