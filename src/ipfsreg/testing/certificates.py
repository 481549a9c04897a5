"""Certificates for tests: an authority of their own, and servers it vouches for."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def write_key(path: Path, key: CertificateIssuerPrivateKeyTypes) -> Path:
    """*key* as PEM; return *path*."""
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@dataclass(frozen=True, slots=True)
class Issued:
    """A server's certificate in PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates of servers; `certificate` is what clients have to trust."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ipfsreg tests")])
        self.certificate = directory / "ca.crt"
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        signed = (
            self._builder(self._name, self._key, timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate.write_bytes(signed.public_bytes(Encoding.PEM))

    def _builder(
        self, subject: x509.Name, key: CertificateIssuerPrivateKeyTypes, lasts: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        authority = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3))
            .not_valid_after(now + lasts)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
        )

    def issue(
        self,
        name: str = "server",
        hosts: Sequence[str] = ("127.0.0.1", "localhost"),
        *,
        key: CertificateIssuerPrivateKeyTypes | None = None,
        lasts: timedelta = timedelta(days=1),
    ) -> Issued:
        """A certificate for *hosts* in `<name>.crt`, with `<name>.key`; negative *lasts*: expired already."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signed = (
            self._builder(subject, key, lasts)
            .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        issued = Issued(self._directory / f"{name}.crt", write_key(self._directory / f"{name}.key", key))
        issued.certificate.write_bytes(signed.public_bytes(Encoding.PEM))
        return issued

    def client_context(self) -> ssl.SSLContext:
        """For clients that trust this authority alone."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        # Some builds of Python 3.11 take a connection that breaks off for one that ended in order.
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        return context


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
