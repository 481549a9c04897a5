"""What a node with a closed door needs: a certificate, passwords, a key for tokens. For tests with real clients.

door = make_closed_door(directory)
with Cluster(directory) as cluster:
    alice = cluster.start("alice", **door.environment())
    # https://alice.http answers with a certificate of door.authority; users are in door.users
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ipfsreg.http.door.htpasswd import make_hash
from ipfsreg.testing.certificates import Authority

COST = 4
"""Of hashes in tests: a millisecond."""

USERS = {"alice": "alice's secret", "bob": "bob's secret", "ci": "ci's secret", "root": "root's secret"}

RULES = (
    {"repositories": "secret/*", "pull": ["alice"], "push": ["alice"]},
    {"repositories": "released/*", "pull": ["*"], "create": ["ci"]},
    {"repositories": "*", "pull": ["*"], "push": ["alice"], "delete": ["alice"]},
)
"""Everybody pulls, alice pushes, ci makes releases and moves none; nobody else sees what is secret."""


@dataclass(frozen=True, slots=True)
class ClosedDoor:
    """Files of one door. Nodes behind one name share them."""

    directory: Path
    authority: Authority
    users: Mapping[str, str]
    """Passwords by name."""

    @property
    def htpasswd(self) -> Path:
        """The password file."""
        return self.directory / "htpasswd"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.directory / "audit.jsonl"

    def environment(
        self,
        *,
        tls: bool = True,
        tokens: bool = True,
        anonymous_pull: bool = True,
        rules: Sequence[Mapping[str, object]] = RULES,
    ) -> dict[str, str]:
        """Configuration of a node behind this door, as `Cluster.start` takes it."""
        values = {
            "AUTH_HTPASSWD": str(self.htpasswd),
            "AUTH_TOKENS": str(tokens),
            "AUTH_TOKEN_KEY": str(self.directory / "token.key"),
            "AUTH_ANONYMOUS_PULL": str(anonymous_pull),
            "AUTH_ADMINS": "root",
            "AUTH_RULES": json.dumps(list(rules)),
            "AUDIT_PATH": str(self.audit),
        }
        if tls:
            values["HTTP_TLS_CERTIFICATE"] = str(self.directory / "server.crt")
            values["HTTP_TLS_KEY"] = str(self.directory / "server.key")
        return {f"IPFSREG_{name}": value for name, value in values.items()}

    def trust_directories(self, place: str, below: Path) -> Path:
        """Write `<place>/ca.crt` into *below*, as docker looks for it; return `<place>`, for `--cert-dir` of skopeo."""
        found = below / place
        found.mkdir(parents=True, exist_ok=True)
        (found / "ca.crt").write_bytes(self.authority.certificate.read_bytes())
        return found


def make_closed_door(directory: Path, users: Mapping[str, str] = USERS) -> ClosedDoor:
    """Write the files of a door into *directory*: a certificate for 127.0.0.1 and localhost, and *users*."""
    authority = Authority(directory)
    authority.issue("server")
    door = ClosedDoor(directory, authority, users)
    lines = [f"{user}:{make_hash(password.encode(), COST).decode()}\n" for user, password in users.items()]
    door.htpasswd.write_text("".join(lines))
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "token.key").write_bytes(pem)
    return door
