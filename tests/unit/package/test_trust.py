"""Who vouches for a package: trainings, approvals, the setting; and who does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.errors import BadInputError, PackageError, StoreError
from tasks.package.__main__ import main
from tasks.package.trust import (
    approve_package,
    find_approval,
    find_trust,
    record_made,
    revoke_package,
    trust_text,
)
from tasks.settings import settings
from tasks.store import Manifest, ObjectStore, Publication

DIGEST = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def approve(store: ObjectStore, who: str = "Ada", why: str = "Her own model") -> str:
    return approve_package(
        store, DIGEST, name="trees", uri="s3://x/trees.dlpk", approved_by=who, reason=why
    ).approved_by


def test_nothing_vouches_for_an_unknown_package() -> None:
    assert find_trust(ObjectStore(), DIGEST, "trees") is None


def test_an_approval_says_who_when_and_why_and_is_never_replaced(root: Path) -> None:
    store = ObjectStore()
    assert approve(store) == "Ada"
    stored = json.loads((root / "approvals" / f"{DIGEST}.json").read_text())
    assert stored["approved_by"] == "Ada"
    assert stored["sha256"] == DIGEST
    assert stored["approved_at"].endswith("+00:00")
    assert approve(store, "Mallory", "Because") == "Ada"
    assert json.loads((root / "approvals" / f"{DIGEST}.json").read_text()) == stored
    trust = find_trust(store, DIGEST, "trees")
    assert trust is not None
    assert trust.kind == "approval"
    assert "approved by Ada" in trust.text
    assert "Her own model" in trust.text
    assert find_approval(store, OTHER) is None


@pytest.mark.parametrize(("who", "why"), [("", "x"), ("Ada", "  ")])
def test_an_approval_needs_a_person_and_a_reason(root: Path, who: str, why: str) -> None:
    with pytest.raises(BadInputError, match="nobody said"):
        approve(ObjectStore(), who, why)
    assert not (root / "approvals").exists()


def test_who_may_not_approve_is_told_who_may(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise StoreError("The store refused to write.", "Ask the operator.")

    monkeypatch.setattr(ObjectStore, "put", refuse)
    with pytest.raises(PackageError, match=r"infra\.local env admin.*approve s3://x/trees\.dlpk"):
        approve(ObjectStore())


def test_a_training_vouches_before_an_approval_does() -> None:
    store = ObjectStore()
    approve(store)
    record_made(store, DIGEST, "trees", "s3://chipline/outputs/one")
    record_made(store, DIGEST, "trees", "s3://chipline/outputs/two")
    trust = find_trust(store, DIGEST, "trees")
    assert trust is not None
    assert trust.kind == "made here"
    assert "outputs/one" in trust.text


def test_a_published_training_of_an_early_version_vouches_for_its_package(root: Path) -> None:
    store = ObjectStore()
    for key, digest in (("k1", OTHER), ("k2", DIGEST)):
        folder = f"{root}/outputs/train_deep_learning_model/trees/{key}"
        Publication(store, folder).finish(
            Manifest(kind="x", name="trees", run_key=key, parts=[], details={"digest": digest})
        )
    trust = find_trust(store, DIGEST, "trees")
    assert trust is not None
    assert trust.kind == "made here"
    assert trust.text.endswith("trees/k2")
    assert find_trust(store, DIGEST, "bushes") is None


@pytest.mark.parametrize("content", [b"{", b"[]", json.dumps({"sha256": OTHER}).encode()])
def test_a_record_that_is_none_vouches_for_nothing(root: Path, content: bytes) -> None:
    (root / "approvals").mkdir()
    (root / "approvals" / f"{DIGEST}.json").write_bytes(content)
    with pytest.raises(PackageError, match="operator"):
        find_trust(ObjectStore(), DIGEST, "trees")


def test_a_record_of_another_package_vouches_for_nothing(root: Path) -> None:
    store = ObjectStore()
    approve(store)
    moved = root / "approvals" / f"{OTHER}.json"
    moved.write_bytes((root / "approvals" / f"{DIGEST}.json").read_bytes())
    with pytest.raises(PackageError, match="another package"):
        find_trust(store, OTHER, "trees")


def test_the_setting_vouches_where_the_store_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object) -> bytes:
        raise StoreError("The store is down.", "Start it.")

    monkeypatch.setattr(ObjectStore, "get", down)
    with pytest.raises(StoreError):
        find_trust(ObjectStore(), DIGEST, "trees")
    monkeypatch.setenv("CHIPLINE_APPROVED_PACKAGES", json.dumps([DIGEST]))
    settings.cache_clear()
    trust = find_trust(ObjectStore(), DIGEST, "trees")
    assert trust is not None
    assert trust.kind == "setting"


def revoke(store: ObjectStore, who: str = "Grace", why: str = "It reads more than it says") -> str:
    return revoke_package(store, DIGEST, name="trees", revoked_by=who, reason=why).revoked_by


def test_a_revocation_wins_over_every_word_for_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore()
    approve(store)
    record_made(store, DIGEST, "trees", "s3://chipline/outputs/one")
    monkeypatch.setenv("CHIPLINE_APPROVED_PACKAGES", json.dumps([DIGEST, OTHER]))
    settings.cache_clear()
    assert find_trust(store, DIGEST, "trees") is not None
    assert revoke(store) == "Grace"
    with pytest.raises(PackageError, match=r"trees was revoked by Grace at .*It reads more than it says"):
        find_trust(store, DIGEST, "trees")
    assert find_trust(store, OTHER, "trees") is not None


def test_a_person_reads_whether_a_package_may_run() -> None:
    store = ObjectStore()
    assert trust_text(store, DIGEST, "trees") == "not yet: nobody vouches for it"
    approve(store)
    assert trust_text(store, DIGEST, "trees").startswith("yes: approved by Ada at ")
    revoke(store)
    assert trust_text(store, DIGEST, "trees").startswith("no: The package trees was revoked by Grace at ")


def test_a_revocation_is_never_replaced_nor_taken_back_by_an_approval(root: Path) -> None:
    store = ObjectStore()
    revoke(store)
    stored = (root / "revocations" / f"{DIGEST}.json").read_bytes()
    assert revoke(store, "Mallory", "Never mind") == "Grace"
    assert (root / "revocations" / f"{DIGEST}.json").read_bytes() == stored
    with pytest.raises(PackageError, match="revoked by Grace"):
        approve(store)
    assert not (root / "approvals").exists()
    with pytest.raises(BadInputError, match="nobody said why"):
        revoke(store, "Grace", " ")


def test_the_operator_revokes_a_file_or_a_digest_without_looking_into_it(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.dlpk"
    file.write_bytes(b"no package at all")
    given = ["--by", "Grace", "--reason", "Broken"]
    assert main(["revoke", str(file), *given]) == 0
    assert main(["revoke", f"sha256:{DIGEST.upper()}", *given]) == 0
    assert "revoked by Grace" in capsys.readouterr().out
    written = {item.stem for item in (root / "revocations").iterdir()}
    assert written == {hashlib.sha256(b"no package at all").hexdigest(), DIGEST}


def test_who_may_not_revoke_is_told_who_may(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise StoreError("The store refused to write.", "Ask the operator.")

    monkeypatch.setattr(ObjectStore, "put", refuse)
    assert main(["revoke", DIGEST, "--by", "Grace", "--reason", "Broken"]) == 1
    assert (
        f'infra.local env admin)" and run python -m tasks.package revoke {DIGEST}' in capsys.readouterr().err
    )
