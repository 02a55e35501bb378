"""Signed bundles: one key vouches for every byte, and an endpoint that asks for it serves no other."""

import shutil

import pytest
from serving_helpers import fake_bundle, load_fake
from typer.testing import CliRunner

from pipelines.cli.bundle import bundle_app
from serving.api.application import build
from serving.bundle.manifest import MANIFEST, SIGNATURE
from serving.bundle.signature import make_keys, require_signature, sign, verify_signed
from serving.deployment import ray_app
from serving.runtime.settings import ServingSettings
from setrec.errors import BundleError, ConfigError


@pytest.fixture
def key(tmp_path):
    make_keys(tmp_path / "release.key")
    return tmp_path / "release.key"


@pytest.fixture
def public(key):
    return key.with_name("release.key.pub")


@pytest.fixture
def bundle(tmp_path):
    fake_bundle(tmp_path / "b")
    return tmp_path / "b"


def test_a_signed_bundle_is_served_and_anything_else_refused_in_one_line(bundle, key, public, tmp_path):
    settings = ServingSettings(auth="off", verify_key=public)
    with pytest.raises(BundleError, match="not signed"):
        build(bundle, settings, load_fake)
    with pytest.raises(BundleError, match="not signed"):  # before anything of Ray begins
        ray_app.start(bundle, settings)
    sign(bundle, key)
    build(bundle, settings, load_fake)
    make_keys(tmp_path / "other.key")
    with pytest.raises(BundleError, match="does not match") as told:
        verify_signed(bundle, tmp_path / "other.key.pub")
    assert "\n" not in str(told.value)


def test_a_change_of_any_file_of_the_manifest_or_of_the_signature_is_seen(bundle, key, public, tmp_path):
    sign(bundle, key)
    for name in sorted(file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()):
        other = tmp_path / "changed"
        shutil.copytree(bundle, other)
        content = bytearray((other / name).read_bytes())
        content[len(content) // 2] ^= 1
        (other / name).write_bytes(content)
        with pytest.raises(BundleError):
            verify_signed(other, public)
        shutil.rmtree(other)
    longer = (bundle / SIGNATURE).read_bytes() + b"x"
    (bundle / SIGNATURE).write_bytes(longer)
    with pytest.raises(BundleError):
        require_signature(bundle, public)


def test_what_is_damaged_is_not_signed_and_keys_are_told_apart(bundle, key, public):
    with pytest.raises(ConfigError, match="public key"):
        require_signature(bundle, key)
    with pytest.raises(ConfigError, match="private key"):
        sign(bundle, public)
    with pytest.raises(ConfigError, match="not overwritten"):
        make_keys(key)
    assert key.stat().st_mode & 0o077 == 0
    (bundle / "items.parquet").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"items\.parquet"):
        sign(bundle, key)
    assert (bundle / MANIFEST).exists()
    assert not (bundle / SIGNATURE).exists()


def test_the_commands_make_keys_sign_and_verify(bundle, tmp_path):
    def run(*given):
        return CliRunner().invoke(bundle_app, list(map(str, given)))

    assert run("key", tmp_path / "k").exit_code == 0
    assert run("sign", bundle, "--key", tmp_path / "k").exit_code == 0
    assert run("verify", bundle, "--key", tmp_path / "k.pub").exit_code == 0
    assert run("verify", bundle).exit_code == 0
    (bundle / SIGNATURE).unlink()
    assert isinstance(run("verify", bundle, "--key", tmp_path / "k.pub").exception, BundleError)
