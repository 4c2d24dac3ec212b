from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raydkm
from raydkm.errors import ModelError
from raydkm.serve import service as service_module
from raydkm.serve.errors import RefusalError
from raydkm.serve.service import Service
from raydkm.serve.settings import ServeConfig
from raydkm.serve.versions import CURRENT, Choice, Version


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fitted")
    for seed, name in enumerate(("one", "two", "three")):
        x = np.random.default_rng(seed).standard_normal((60, 3)).astype(np.float32)
        raydkm.fit(x, clusters=4, temperature="0.2Tc", max_steps=2, out=place / name)
    return place


@pytest.fixture
def models(tmp_path: Path, fitted: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "models"))


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "LOOK_EVERY", 0.001)


class Replica:
    """A service that follows the others until the block ends."""

    def __init__(self, models: Path | None, configured: Path):
        self.service = Service(ServeConfig(models=None if models is None else str(models)))
        self._configured = configured

    @property
    def serves(self) -> str:
        return self.service.version.name

    async def __aenter__(self) -> Replica:
        await self.service.configure(str(self._configured))
        self._task = asyncio.create_task(self.service.follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def looks(self, times: int = 3) -> None:
        """Return when it has looked so often at what it is to serve."""
        seen, told = asyncio.Event(), self.service._choice.told
        loop, left = asyncio.get_running_loop(), [times]

        def counted() -> Any:
            found = told()
            left[0] -= 1
            if left[0] < 0:  # the look before has ended
                loop.call_soon_threadsafe(seen.set)
            return found

        self.service._choice.told = counted  # type: ignore[method-assign]
        await asyncio.wait_for(seen.wait(), 20)
        self.service._choice.told = told  # type: ignore[method-assign]


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_a_reload_is_followed_also_into_a_directory_that_was_overwritten(models: Path) -> None:
    async def main() -> None:
        async with Replica(models, models / "one") as a, Replica(models, models / "one") as b:
            await a.service.reload("two")
            await b.looks()
            assert (a.serves, b.serves) == ("two", "two")
            shutil.rmtree(models / "two")
            shutil.copytree(models / "three", models / "two")
            _, after = await a.service.reload("two")
            await b.looks()
            assert b.service.version.checksum == after.checksum == raydkm.load(models / "three").checksum()

    run(main())


def test_a_model_of_the_same_tensors_at_another_temperature_is_another(models: Path) -> None:
    raydkm.load(models / "one").save(models / "warm")
    warm = replace(raydkm.load(models / "one"), temperature=3.0)
    warm.save(models / "warm", overwrite=True)

    async def main() -> None:
        async with Replica(models, models / "two") as a, Replica(models, models / "two") as b:
            await a.service.reload("one")
            await b.looks()
            shutil.rmtree(models / "one")
            shutil.copytree(models / "warm", models / "one")
            await a.service.reload("one")
            await b.looks()
            assert b.service.version.model.temperature == 3.0

    run(main())


def test_a_reload_that_failed_in_one_replica_is_tried_again(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Replica(models, models / "one") as a, Replica(models, models / "one") as b:
            loaded = Version.loaded

            def fails(path: str, config: ServeConfig) -> Version:
                raise ModelError("a file that is not there yet")

            await b.service._changing.acquire()  # until the other one has it
            await a.service.reload("two")
            monkeypatch.setattr(Version, "loaded", fails)
            b.service._changing.release()
            await b.looks()
            assert b.serves == "one"
            monkeypatch.setattr(Version, "loaded", loaded)
            await b.looks()
            assert b.serves == "one"  # not at every look
            b.service._retry_at = 0.0  # the time is over
            await b.looks()
            assert b.serves == "two"

    run(main())


def test_what_was_told_before_a_reload_is_not_taken_after_it(models: Path) -> None:
    async def main() -> None:
        async with Replica(models, models / "one") as a, Replica(models, models / "one") as b:
            taken, install = [], b.service._install
            b.service._install = lambda version: (taken.append(version.name), install(version))  # type: ignore[assignment, method-assign, func-returns-value]
            b._task.cancel()
            await a.service.reload("two")
            await b.service._changing.acquire()  # a reload begins in b
            b._task = asyncio.create_task(b.service.follow())
            for _ in range(300):  # b has had time to look
                await asyncio.to_thread(os.getpid)
            three = Version.loaded(str(models / "three"), b.service.config)
            b.service._choice.tell(three.told)
            b.service._install(three)
            b.service._changing.release()  # and ends
            await b.looks()
            assert taken == ["three"]

    run(main())


def test_a_model_configured_again_is_served(models: Path) -> None:
    async def main() -> None:
        async with Replica(models, models / "one") as a:
            await a.service.reload("three")
            await a.service.configure(str(models / "one"))
            assert a.serves == "three"  # the same configuration: a replica that starts anew
            await a.service.configure(str(models / "two"))
            assert a.serves == "two"
            await a.service.configure(str(models / "one"))
            assert a.serves == "one"

    run(main())


def test_a_reload_that_cannot_be_told_to_the_others_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    async def main() -> None:
        async with Replica(models, models / "one") as a:
            monkeypatch.setattr(os, "replace", read_only)
            with pytest.raises(RefusalError, match="one still answers") as refused:
                await a.service.reload("two")
            assert (refused.value.status, a.serves) == (422, "one")

    run(main())


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"configured": 1}',
        {"model": "gone", "identity": ""},
        {"model": "two", "identity": "of another model"},
        {"model": "two", "identity": None},
    ],
)
def test_a_file_that_cannot_be_used_does_not_keep_a_replica_from_the_configured_model(
    models: Path, content: Any
) -> None:
    configured = str(models / "one")
    text = content if isinstance(content, str) else json.dumps({"configured": configured, **content})
    (models / CURRENT).write_text(text)

    async def main() -> None:
        async with Replica(models, models / "one") as a:
            await a.looks()
            assert a.serves == "one"
            await a.service.reload("two")
            assert a.serves == "two"

    run(main())


def test_replicas_go_on_looking_after_a_fault(models: Path) -> None:
    async def main() -> None:
        async with Replica(models, models / "one") as a:
            told = a.service._choice.told

            def faulty() -> None:
                a.service._choice.told = told  # type: ignore[method-assign]
                raise RuntimeError("of any kind")

            a.service._choice.told = faulty  # type: ignore[method-assign]
            while a.service._choice.told == faulty:
                await asyncio.sleep(0)
            await a.looks()

    run(main())


def test_the_report_of_a_model_after_partial_fit(tmp_path: Path) -> None:
    estimator = raydkm.DKMeans(3, objective="kmeans", random_state=0)
    estimator.partial_fit(np.random.default_rng(0).standard_normal((90, 3)))
    estimator.model_.save(tmp_path / "model")
    report = json.loads(Version.loaded(str(tmp_path / "model"), ServeConfig()).report)
    assert (report["stopped"], report["seconds"], report["loss"], report["clusters"]) == (None, None, None, 3)


@pytest.fixture
def names(tmp_path: Path) -> Path:
    for name in ("models/one", "models/deep/two", "secret"):
        (tmp_path / name).mkdir(parents=True)
    os.symlink(tmp_path / "secret", tmp_path / "models" / "link")
    return tmp_path / "models"


def test_a_model_deep_in_the_directory_has_a_name(names: Path) -> None:
    assert Choice(str(names)).resolve("deep/two") == str(names / "deep" / "two")


@pytest.mark.parametrize("name", ["link", "..", "../secret", "/", "", "one/../..", "absent", "\0"])
def test_no_name_leads_out_of_the_directory(names: Path, name: str) -> None:
    with pytest.raises(RefusalError):
        Choice(str(names)).resolve(name)


def test_without_a_directory_nothing_is_reloaded() -> None:
    with pytest.raises(RefusalError, match="no directory"):
        Choice(None).resolve("one")


def test_a_reload_that_does_not_read_ends_and_leaves_the_others_their_threads(models: Path) -> None:
    (models / "pipe").mkdir()
    os.mkfifo(models / "pipe" / "model.json")  # nobody writes: whoever opens it waits for ever

    async def main() -> None:
        service = Service(ServeConfig(models=str(models)))
        await service.configure(str(models / "one"))
        service.config = ServeConfig(models=str(models), reload_timeout=0.2)
        for _ in range(20):  # more than a pool has threads
            with pytest.raises(RefusalError, match=r"one still answers: .* within 0\.2 s") as refused:
                await asyncio.wait_for(service.reload("pipe"), 20)
            assert refused.value.status == 422
        service.config = ServeConfig(models=str(models))
        _, after = await service.reload("two")
        assert after.name == service.version.name == "two"

    run(main())


def test_a_look_that_does_not_read_ends(models: Path) -> None:
    async def main() -> None:
        async with Replica(models, models / "one") as a:
            never, ended, told = threading.Event(), asyncio.Event(), a.service._choice.told
            loop = asyncio.get_running_loop()

            def hangs() -> None:
                a.service._choice.told = again  # type: ignore[method-assign]
                never.wait(30)

            def again() -> Any:
                loop.call_soon_threadsafe(ended.set)
                return told()

            a.service.config = ServeConfig(models=str(models), reload_timeout=0.1)
            a.service._choice.told = hangs  # type: ignore[method-assign, assignment]
            await asyncio.wait_for(ended.wait(), 20)
            a.service.config = ServeConfig(models=str(models))
            await asyncio.wait_for(a.service.reload("two"), 20)
            never.set()

    run(main())
