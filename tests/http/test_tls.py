"""The certificate: what is refused, and that a new one is taken without a connection lost."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from ipfsreg.errors import ConfigError
from ipfsreg.http.tls import Tls, load_credentials
from ipfsreg.testing.certificates import Authority, Issued


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def refusal(issued: Issued) -> str:
    with pytest.raises(ConfigError) as caught:
        load_credentials(issued.certificate, issued.key)
    return str(caught.value)


def test_a_file_that_is_not_there_is_named(authority: Authority, tmp_path: Path) -> None:
    issued = authority.issue()
    missing = tmp_path / "missing.pem"
    assert "http.tls_certificate" in refusal(Issued(missing, issued.key))
    text = refusal(Issued(issued.certificate, missing))
    assert "http.tls_key" in text
    assert "missing.pem" in text
    assert "No such file" in text


def test_the_key_of_another_certificate_is_refused(authority: Authority) -> None:
    alice, bob = authority.issue("alice"), authority.issue("bob")
    text = refusal(Issued(alice.certificate, bob.key))
    assert "bob.key" in text
    assert "is not the key of the certificate" in text


def test_an_expired_certificate_is_refused_with_its_date(authority: Authority) -> None:
    assert "expired on 20" in refusal(authority.issue(lasts=timedelta(days=-1)))


def test_what_is_no_pem_is_refused(authority: Authority) -> None:
    issued = authority.issue()
    assert "must be a PEM file with a private key" in refusal(Issued(issued.certificate, issued.certificate))
    assert "with the certificate first" in refusal(Issued(issued.key, issued.key))


def test_a_file_of_any_size_is_not_read_whole(authority: Authority) -> None:
    issued = authority.issue()
    with issued.certificate.open("ab") as file:
        file.truncate(1 << 30)
    assert "larger than" in refusal(issued)


def test_an_encrypted_key_is_refused_because_nobody_could_type_its_password(authority: Authority) -> None:
    key = rsa.generate_private_key(65537, 2048)
    issued = authority.issue(key=key)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    issued.key.write_bytes(encrypted)
    assert "must not be encrypted" in refusal(issued)


def test_the_handshake_with_a_long_rsa_key_belongs_into_a_thread(authority: Authority) -> None:
    for bits, slow in ((2048, False), (3072, True)):
        issued = authority.issue(key=rsa.generate_private_key(65537, bits))
        assert load_credentials(issued.certificate, issued.key).slow is slow


def test_a_certificate_that_ends_soon_is_told(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    issued = authority.issue(lasts=timedelta(days=3))
    Tls(issued.certificate, issued.key)
    assert "valid until" in caplog.text


def test_what_cannot_be_used_does_not_replace_what_is_in_use(authority: Authority) -> None:
    issued = authority.issue("alice")
    tls = Tls(issued.certificate, issued.key)
    before = tls.credentials
    authority.issue("bob").key.rename(issued.key)
    with pytest.raises(ConfigError):
        tls.reload()
    assert tls.credentials is before
    authority.issue("alice")
    tls.reload()
    assert tls.credentials is not before
