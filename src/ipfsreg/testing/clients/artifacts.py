"""helm and cosign: a registry as the place of charts and of signatures."""

from __future__ import annotations

from pathlib import Path

from ipfsreg.testing.clients.interface import last_digest
from ipfsreg.testing.clients.programs import ClientFailed, Place

_CHART = "apiVersion: v2\nname: {name}\nversion: {version}\ndescription: A chart for tests.\n"
_TEMPLATE = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: greeting\ndata:\n  greeting: {{ .Values.greeting }}\n"


class Helm:
    """helm: pushes and pulls charts."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._auth = place.directory / "helm.json"

    def version(self) -> str:
        return self.place.origin.module_version("helm")

    def _helm(self, *arguments: str | Path, stdin: str | None = None) -> str:
        authority = self.place.authority
        trust = ["--ca-file", authority] if authority else ["--plain-http"]
        return self.place.run("helm", *arguments, *trust, "--registry-config", self._auth, stdin=stdin)

    def login(self, address: str, user: str, password: str) -> None:
        self._helm("registry", "login", address, "-u", user, "--password-stdin", stdin=password)

    def package(self, name: str, version: str) -> Path:
        """A chart as the file that is pushed."""
        chart = self.place.directory / name
        (chart / "templates").mkdir(parents=True, exist_ok=True)
        (chart / "Chart.yaml").write_text(_CHART.format(name=name, version=version))
        (chart / "values.yaml").write_text("greeting: hello\n")
        (chart / "templates" / "map.yaml").write_text(_TEMPLATE)
        self.place.run("helm", "package", chart, "-d", self.place.directory)
        return self.place.directory / f"{name}-{version}.tgz"

    def push(self, chart: Path, repository: str) -> str:
        """Push *chart* below *repository*, which is `ADDRESS:PORT/path`; return the digest."""
        return last_digest(self._helm("push", chart, f"oci://{repository}"))

    def pull(self, repository: str, name: str, version: str) -> bytes:
        """The chart's file, as the registry has it."""
        target = self.place.directory / "pulled"
        target.mkdir(exist_ok=True)
        self._helm("pull", f"oci://{repository}/{name}", "--version", version, "-d", target)
        return (target / f"{name}-{version}.tgz").read_bytes()

    def show(self, repository: str, name: str, version: str) -> str:
        """What `helm show chart` reads from the registry."""
        return self._helm("show", "chart", f"oci://{repository}/{name}", "--version", version)


class Cosign:
    """cosign with keys of its own, without a transparency log."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def version(self) -> str:
        # Debian's says "devel".
        return self.place.origin.package_version("cosign")

    def _cosign(self, *arguments: str | Path, stdin: str | None = None) -> str:
        variables = {"COSIGN_PASSWORD": "", "COSIGN_EXPERIMENTAL": "1" if self._old else "0"}
        return self.place.run("cosign", *arguments, stdin=stdin, environment=variables)

    @property
    def _old(self) -> bool:
        """Version 2 makes tags of signatures unless it is told to make referrers."""
        return self.version().startswith("2.")

    def _trust(self) -> list[str | Path]:
        authority = self.place.authority
        return ["--registry-cacert", authority] if authority else ["--allow-http-registry"]

    def login(self, address: str, user: str, password: str) -> None:
        trust = [] if self.place.authority else ["--insecure"]
        self._cosign("login", address, "-u", user, "--password-stdin", *trust, stdin=password)

    def make_keys(self, name: str) -> None:
        """A pair of keys."""
        self._cosign("generate-key-pair", "--output-key-prefix", self.place.directory / name)

    def sign(self, reference: str, keys: str) -> None:
        """Sign what *reference*, with a digest, names; the signature becomes a referrer of it."""
        key = self.place.directory / f"{keys}.key"
        how = "--registry-referrers-mode=oci-1-1" if self._old else "--use-signing-config=false"
        self._cosign("sign", "--key", key, how, "--tlog-upload=false", "-y", *self._trust(), reference)

    def verify(self, reference: str, keys: str) -> bool:
        """Whether it carries a signature by these keys."""
        key = self.place.directory / f"{keys}.pub"
        how = ["--experimental-oci11"] if self._old else []
        try:
            self._cosign("verify", "--key", key, *how, "--insecure-ignore-tlog=true", *self._trust(), reference)
        except ClientFailed as error:
            if "no signatures found" not in str(error) and "no matching attestations" not in str(error):
                raise
            return False
        return True
